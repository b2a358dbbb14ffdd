"""A model in all its forms, with the proofs that nothing was altered and that all of them answer alike."""
