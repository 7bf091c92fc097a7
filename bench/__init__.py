"""Benchmarks beside peers: `make bench`, or `make bench AREA=listing`."""
