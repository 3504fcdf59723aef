"""Exit codes of the `d3jax` command, beside 0."""

FAILED = 2
INTERRUPTED = 130
PREEMPTED = 75
"""A run that was asked to stop and saved first (sysexits' EX_TEMPFAIL)."""
