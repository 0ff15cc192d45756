"""This project's code and the plain form of the same, timed side by side in one process: `python -m benchmarks`."""
