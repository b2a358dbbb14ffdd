"""Where a command may write, and folders that are either whole or not there."""
