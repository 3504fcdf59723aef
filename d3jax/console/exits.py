"""Exit codes of the `d3jax` command, beside 0."""

FAILED = 2
"""Something that the message names, with its cure."""
UNFORESEEN = 70
"""An error that d3jax knows nothing of; it is to be reported (sysexits' EX_SOFTWARE)."""
PREEMPTED = 75
"""A run that was asked to stop and saved first (sysexits' EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C where there was nothing to save, or a second one."""
TERMINATED = 143
"""SIGTERM where there was nothing to save."""
