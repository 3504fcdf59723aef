"""The `d3jax` command of a shell, from its first moment."""

from __future__ import annotations

from experiments.signals import leave_at_once


def main() -> None:
    """Runs `experiments.cli`; a signal while it is imported ends the process without a word."""
    leave_at_once()
    from experiments.cli import main as run

    run()
