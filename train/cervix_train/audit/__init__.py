"""Copies of one cell, within splits and across them, and what these cost in test accuracy."""
