"""Messages to a program that calls d3jax: on the screen, or in the program's log."""

from __future__ import annotations

import logging
import sys
from typing import Any

from d3jax.console.terminal import Console

LOGGER = "d3jax"
"""The logger's name."""

_LOUD = ("bold red", "yellow")
"""The colours of what went wrong and of warnings."""


class Log(Console):
    """Passes messages to the logger, and shows nothing else: no bar, no table."""

    def __init__(self) -> None:
        super().__init__(stderr=True, quiet=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """Log what the objects say; as a warning where they would stand in a warning's colour."""
        text = " ".join(map(str, objects))
        loud = any(getattr(one, "style", "") in _LOUD for one in objects)
        if text:  # A bar ends with an empty line.
            level = logging.WARNING if loud else logging.INFO
            logging.getLogger(LOGGER).log(level, "%s", text)


def voice() -> Console:
    """Return standard error where it is a terminal, which shows a progress bar; else the log."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return Console(stderr=True) if watched else Log()
