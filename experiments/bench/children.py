"""Each measurement in a process of its own, so that memory and threads are the variant's alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from d3jax.config import Config
from experiments.bench.variants import ALLOCATOR, SIDES, Variant

Action = Literal["time", "reference", "check", "probe"]


class ChildError(Exception):
    """A child process ended with an error; the message is its last line."""


@dataclass(frozen=True)
class TorchSettings:
    """Number of threads (0: torch's own choice), and whether the network is compiled."""

    threads: int = 0
    compiled: bool = False


@dataclass(frozen=True)
class Chosen:
    """The settings that suit each kind of call best."""

    train: TorchSettings = TorchSettings()
    score: TorchSettings = TorchSettings()
    latency: TorchSettings = TorchSettings()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Chosen:
        """The inverse of `asdict`."""
        return cls(**{name: TorchSettings(**settings) for name, settings in value.items()})


@dataclass(frozen=True)
class Request:
    """The task of a child.

    `reference` writes weights, and what d3jax computes with them, into `folder`; `check` loads
    the weights and fails unless it computes the same; `probe` finds the best torch settings;
    `time` measures, each kind of call for about `seconds`.
    """

    action: Action
    variant: Variant
    workload: str
    batch_size: int
    seconds: float
    candidates: int
    """Rows of the larger latency request."""
    folder: str = ""
    chosen: Chosen = Chosen()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        """The inverse of `asdict`."""
        variant = value["variant"]
        variant = Variant(**variant | {"config": Config.from_json(variant["config"])})
        return cls(**{**value, "variant": variant, "chosen": Chosen.from_json(value["chosen"])})


def serve(handle: Callable[[Request], dict[str, Any]]) -> None:
    """The main function of a child: reads the request, writes what `handle` gives."""
    source, target = map(Path, sys.argv[1:])
    request = Request.from_json(json.loads(source.read_text()))
    target.write_text(json.dumps(handle(request)))


def ask(request: Request) -> dict[str, Any]:
    """Return what a child answers; raises `ChildError` when it fails."""
    variant = request.variant
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "request.json"), Path(folder, "answer.json")
        source.write_text(json.dumps(asdict(request)))
        done = subprocess.run(
            [sys.executable, "-m", SIDES[variant.side], str(source), str(target)],
            env=os.environ | _environment(request),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ChildError(lines[-1] if lines else f"exit status {done.returncode}")
        return json.loads(target.read_text())


def _environment(request: Request) -> dict[str, str]:
    """The allocator's settings, and a place of its own for what torch compiles: the first process
    that times a variant compiles anew, and the time it takes is the time it takes a user."""
    variant = request.variant
    place = Path(request.folder, request.action, "".join(filter(str.isalnum, variant.name)))
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(place)} if request.folder else {}
    return compiled | (ALLOCATOR if variant.allocator else {})
