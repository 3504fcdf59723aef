"""A tiny prepared directory, and one run trained on it that most tests only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from data_pipelines.synthetic import SyntheticConfig, synthetic, write
from experiments.cli import main

SMALL_PLAIN = [
    "--embedding-dim",
    "4",
    "--embedding-dropout",
    "0.2",
    "--bottom-layers",
    "8",
    "6",
]
"""Flags of a plain model without D3."""

SMALL = [
    *SMALL_PLAIN,
    "--field-hidden",
    "3",
    "--width",
    "5",
    "--gate-layers",
    "6",
    "4",
]
"""Flags of a model that compiles in a moment."""

LONG = [
    "--batch-size",
    "64",
    "--epochs",
    "3",
    "--evaluate-every",
    "0.5",
    "--patience",
    "0",
    "--checkpoint-every",
    "7",
    "--log-every",
    "5",
]
"""33 steps an epoch, 99 in all, often saved."""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to standard error, on one line."""
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """Whole runs contain optax, whose bias correction promotes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,100 training, 300 validation and 600 test rows in three scenarios."""
    directory = tmp_path_factory.mktemp("prepared") / "clicks"
    write(synthetic(SyntheticConfig(rows=3000, users=60, items=50, smallest_share=0.05)), directory)
    return directory


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The flags of a model that compiles in a moment."""
    return list(SMALL)


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, 18 steps, on all devices. Copy it to change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--batch-size", "256", "--epochs", "2", "--log-every", "4", "--patience", "0"]
    main(["train", str(prepared), "--out", str(run), *flags, *SMALL])
    return run
