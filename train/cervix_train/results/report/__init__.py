"""The training report: its page and its pictures."""
