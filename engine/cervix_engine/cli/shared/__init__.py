"""What all commands share: wrong usage in one line, exit codes, logs, progress, signals."""
