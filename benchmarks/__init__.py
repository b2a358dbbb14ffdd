"""What is measured, in one run with what it is compared to: `python -m benchmarks.races.peers --help` in a checkout."""
