"""Our recipes beside other ways to the same training, each run a process of its own: `python -m benchmarks.peers`."""
