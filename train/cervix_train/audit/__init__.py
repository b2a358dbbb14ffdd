"""Copies of one cell, between the parts of a split and within them, and what they cost."""
