"""Rows, their columns and formats, and what is made of a finished table."""
