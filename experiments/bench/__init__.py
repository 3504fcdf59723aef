"""Measurements of speed and memory, each run as `python -m experiments.bench.NAME`."""
