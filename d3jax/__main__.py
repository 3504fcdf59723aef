"""The `d3jax` command of a shell, from its first moment."""

from __future__ import annotations

import sys
from contextlib import suppress

from d3jax.console.signals import leave_at_once


def main() -> None:
    """Runs `d3jax.cli`; a signal while it is imported ends the process without a word."""
    leave_at_once()
    from d3jax.overview import asks_for_overview, explain

    if asks_for_overview(sys.argv[1:]) and sys.stdout and sys.stderr:
        # Output that can't be written is told by the whole command.
        with suppress(OSError):
            explain(sys.argv[1:])
    from d3jax.cli import main as run

    run()


if __name__ == "__main__":
    main()
