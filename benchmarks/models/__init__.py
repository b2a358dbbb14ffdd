"""The model alone: its precisions, and its graph before and after folding."""
