"""A model that somebody else trained, brought to raw pixels and probabilities, and into a bundle."""
