"""Named configurations. Each says how to run it and what to expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.typed import parse_json

_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # d3jax train PREPARED: TEXT, but for what trains worse, or dearer for nothing. Embeddings start
    # as N(0, .01): Glorot over the whole table, as the authors have it, starts so close to zero
    # that large tables hardly learn. D3 is small, for larger ones cost more, and AUC on logs of
    # clicks: kernels are mixed from 4 matrices, fields have 4 hidden units, the layer 32, the gate
    # one of 16, and attention asks once a row. The shared kernel is added, where the paper
    # multiplies by it: scale can't move between kernels and gate, so that the gate says how much of
    # a row's weights are its own. Rows are weighed early, for such runs stop early, and by
    # attention only where its entropies differ by more than rounding. Domains are found in the
    # rows, and get terms of their own where that is safe. Validation AUC chooses the weights:
    # logloss, on rows of a later time, mostly tells how the click rate moved.
    "best": {
        "model": {"embedding_init": "normal", "wide": "auto", "domain": ["auto"]},
        "d3": {
            "field_hidden": 4,
            "rank": 4,
            "width": 32,
            "attention_value": "row",
            "gate_layers": [16],
            "kernel_fusion": "additive",
            "bias_fusion": "additive",
        },
        "balance": {"start_ratio": 0.1, "minimum_std": 1e-4},
        "train": {"batch_size": 1024, "monitor": "auc"},
    },
    # The paper's equations and sizes: d3jax train PREPARED --preset text
    "text": {},
    # The authors' released code: d3jax train PREPARED --preset official
    "official": {
        "model": {"backbone": "plain"},
        "d3": {
            "form": "official",
            "width": 128,
            "head_layers": [16, 16],
            "detach_generator": True,
        },
        "balance": {"start_ratio": 0.726, "entropy": "naive"},
        "train": {"epochs": 1},
    },
    # d3jax prepare movielens-1m SOURCE ml && d3jax train ml --preset movielens
    "movielens": {
        "model": {"embedding_init": "normal"},
        "d3": {"field_hidden": 16},
        "train": {"batch_size": 1024},
    },
    # d3jax train
    "synthetic": {
        "model": {
            "embedding_init": "normal",
            "embedding_scale": 0.3,
            "embedding_dropout": 0.2,
            "bottom_layers": [32, 16],
            "wide": "auto",
            "domain": ["auto"],
        },
        "d3": {"field_hidden": 8, "width": 16},
        "optimizer": {"weight_decay": 1.0},
        "train": {"batch_size": 1024, "epochs": 6},
    },
}
"""In what each differs from the defaults, which are the paper's text."""


class _Presets(Mapping[str, Config]):
    """The configurations by name, made when they are asked for: their parts import JAX."""

    def __getitem__(self, name: str) -> Config:
        return _preset(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_SETTINGS)

    def __len__(self) -> int:
        return len(_SETTINGS)


@cache
def _preset(name: str) -> Config:
    return Config.from_json(_SETTINGS[name])


PRESETS = _Presets()


def read_preset(path: Path) -> Config:
    """The configuration in a preset file, such as a search or a run's config.json writes.

    Raises `ConfigError` naming the file and what is wrong with it.
    """
    content = _content(path)
    try:
        return Config.from_json(content["config"])
    except ConfigError as error:
        raise ConfigError(f"{path} is no preset file ({error})") from error


def written_by_hand(path: Path) -> bool:
    """Return whether a preset file holds settings alone; one that d3jax writes holds more.

    Only of a file by hand is every setting there on purpose. Raises what `read_preset` does.
    """
    return _content(path).keys() == {"config"}


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path} ({error.strerror}); give a preset file") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no preset file ({error})") from error
    if not isinstance(content, dict) or "config" not in content:
        raise ConfigError(f"{path} is no preset file (it has no config)")
    return content
