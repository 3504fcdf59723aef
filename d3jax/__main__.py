"""The `d3jax` command of a shell, from its first moment."""

from __future__ import annotations

from d3jax.console.signals import leave_at_once


def main() -> None:
    """Runs `d3jax.cli`; a signal while it is imported ends the process without a word."""
    leave_at_once()
    from d3jax.cli import main as run

    run()


if __name__ == "__main__":
    main()
