"""A finished table as one page that a person can read."""
