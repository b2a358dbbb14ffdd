"""A whole training: from labelled tiles to a sealed bundle."""
