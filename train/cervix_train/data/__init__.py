"""Labelled tiles: found, split, decoded, augmented, dealt in batches."""
