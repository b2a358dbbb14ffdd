"""Whether the tiles of a run, taken together, are like those that the model learned from."""
