"""The output of a benchmark: looked at before it measures for hours, and written as it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d3jax.errors import ConfigError
from experiments.bench.limits import Limits


def check_outputs(*paths: Path | None) -> None:
    """Raises `ConfigError` for a path that no file can be written to."""
    for path in filter(None, paths):
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; name a file in it")
        if not path.parent.is_dir():
            raise ConfigError(f"{path} can't be written: there is no directory {path.parent}")


def write_results(
    path: Path | None, load: tuple[float, float, float], limits: Limits, results: Mapping[str, Any]
) -> None:
    """Everything so far, so that a run that is stopped has not been for nothing."""
    if path:
        machine = {"cores": os.cpu_count(), "load_before": load, **limits._asdict()}
        path.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
