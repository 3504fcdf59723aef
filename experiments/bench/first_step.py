"""The d3jax command, which ends as soon as the first step of a training run is done.

python -m experiments.bench.first_step train PREPARED --preset movielens
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn
from unittest.mock import patch

from d3jax import cli, verbs
from d3jax.console.terminal import Console


def main() -> None:
    """Runs the command that was given, and its loss fetched after each step.

    The process ends without tidying up: a run directory that it made is of no use.
    """
    run = verbs.Train.run

    def watched(verb: verbs.Train, console: Console) -> None:
        # JAX is imported no sooner than by the command itself, which first sets it up.
        from d3jax.journal import Journal

        with patch.object(Journal, "logged", _end):
            run(verb, console)

    with patch.object(verbs.Train, "run", watched):
        cli.main([*sys.argv[1:], "--log-every", "1"])


def _end(*_: object) -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    main()
