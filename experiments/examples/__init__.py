"""Programs of a page each, to start from; each runs as `python -m experiments.examples.NAME`."""
