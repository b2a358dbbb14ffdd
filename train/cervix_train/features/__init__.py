"""The frozen backbone's features, computed once and kept."""
