"""What things cost, each beside the floor of the same work, measured in the same run: `python -m benchmarks`."""
