"""Real models, the peers they are compared with, and the runs that compare them; start with `python -m benchmarks`."""
