"""Whole slides: the grid of tiles on one, where its tissue is, and a tile's pixels, read by OpenSlide."""
