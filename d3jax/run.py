"""The run directory: all that `evaluate`, `predict` and a resumed `train` need.

.d3jax                 the marker of what d3jax made
lock                   held by the process that trains
config.json            settings, where the data is
schema.json            fields and scenarios, with vocabularies/ beside it
checkpoints/           Orbax: the newest and the best
metrics.jsonl          losses and validation metrics by step
tensorboard/           the same as event files
evaluation.json        metrics of the best weights on the test rows
figures/               pictures
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d3jax.batch import Schema
from d3jax.checks import within
from d3jax.config import Config, differences
from d3jax.data.prepared import Prepared, open_prepared, read_schema
from d3jax.errors import CheckpointError, ConfigError, DataError
from d3jax.owned import building, check_free, replacing
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.checkpoint.storage import check_storable
from d3jax.typed import LARGEST, from_json, parse_json, to_json

RUN_VERSION = 4


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory and what it was started with."""

    directory: Path
    config: Config
    described: Prepared
    """Schema, vocabularies and provenance, as the run keeps them."""
    data: Path
    fingerprint: str
    """`Prepared.fingerprint` of the data when the run was made."""
    training_rows: int
    arrays: dict[str, str] = field(default_factory=dict)
    """Type and shape of each array of a model of one's own, which no configuration describes."""

    @property
    def schema(self) -> Schema:
        """The schema that the model was built for."""
        return self.described.schema

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.directory}: {self.called}>"

    @property
    def called(self) -> str:
        """Return in words which model it is."""
        if self.arrays:
            return "a model of one's own"
        model = self.config.model
        head = f"d3 ({self.config.d3.parts})" if model.head == "d3" else model.head
        return f"{model.backbone} with {head}"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, schema and arrays that a checkpoint must agree with to be this run's."""
        identity = {"config": self.config.to_json(), "schema": _plain(self.schema)}
        return {**identity, "arrays": self.arrays} if self.arrays else identity

    def checkpoints(self, writer: bool) -> Checkpoints:
        """The run's checkpoints; `writer` for the one process that trains."""
        return Checkpoints(self.directory / "checkpoints", self.identity, writer=writer)

    def path(self, *names: str) -> Path:
        """A file of the run; its folder is made when it isn't there."""
        path = self.directory.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def prepared(self, data: Path | None = None) -> Prepared:
        """The run's data, or other data that encodes values alike.

        Raises `DataError` saying in what they differ, or that the run's data have changed.
        """
        if data is None and not self.data.exists():
            raise DataError(
                f"{self.data}, the data of the run {self.directory}, is not there; if it has "
                "moved, name its place by --data"
            )
        prepared = open_prepared(self.data if data is None else data)
        if changed := self.schema.differences(prepared.schema):
            raise DataError(
                f"{prepared.directory} encodes rows in another way than the data of the run "
                f"{self.directory}: {'; '.join(changed)}. Give the data that it was trained on, or "
                f"the raw rows to d3jax predict, which encodes them by the run's own vocabularies"
            )
        if data is None:
            self.check_unchanged(prepared)
        return prepared

    def training_data(self, data: Path | None = None) -> Prepared:
        """The data to go on training with: the run's own, or the same at another place.

        Raises `DataError` when they are not the same rows.
        """
        prepared = self.prepared(data)
        self.check_unchanged(prepared)
        return prepared

    def check_unchanged(self, prepared: Prepared) -> None:
        """Raises `DataError` when these are not the very rows that the run was made for."""
        if prepared.fingerprint != self.fingerprint:
            raise DataError(
                f"{prepared.directory} holds other rows than when the run {self.directory} was "
                "made: it was prepared again. Put the data back and name their place by --data, or "
                "start a new run on these"
            )

    def doubt(self, prepared: Prepared) -> str | None:
        """Why the metrics of these data may be too good: they share files with the run's own data,
        of which a split has put other rows into train. None where they don't."""
        if prepared.fingerprint == self.fingerprint:
            return None
        known = set(self.described.provenance.get("sources", {}).values())
        sources = prepared.provenance.get("sources", {})
        if not (shared := sorted(name for name, digest in sources.items() if digest in known)):
            return None
        return (
            f"{prepared.directory} was prepared from files of the run's own data "
            f"({', '.join(shared)}) and is split in another way, so the run may have been trained "
            "on rows that are scored here"
        )

    def write_json(self, name: str, value: Any) -> None:
        """Replaces a file of the run as a whole."""
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        with replacing(self.directory / name) as draft:
            draft.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Begun:
    """The content of config.json: the settings that a run was begun with, and its data."""

    run_version: int
    data: str
    data_fingerprint: str
    training_rows: int
    config: Config
    arrays: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        within("training_rows", self.training_rows, 1, LARGEST)


def create_run(
    directory: Path,
    config: Config,
    prepared: Prepared,
    overwrite: bool,
    arrays: dict[str, str] | None = None,
) -> Run:
    """A new run directory for training on `prepared`; raises what `check_run_free` raises."""
    check_storable(directory)
    data = prepared.directory.resolve()
    rows = len(prepared.rows("train").label)
    cure = _go_on(directory)
    with building(directory, "run", overwrite, cure=cure, inputs=[data]) as new:
        shutil.copyfile(data / "schema.json", new / "schema.json")
        shutil.copytree(data / "vocabularies", new / "vocabularies")
        described = read_schema(new)
        save_settings(Run(new, config, described, data, prepared.fingerprint, rows, arrays or {}))
    return open_run(directory)


def save_settings(run: Run) -> None:
    """Writes config.json; of a model of one's own it says nothing but the loop's settings."""
    begun = Begun(
        RUN_VERSION, str(run.data), run.fingerprint, run.training_rows, run.config, run.arrays
    )
    content = to_json(begun)
    if run.arrays:
        content["config"] = {"train": content["config"]["train"]}
    run.write_json("config.json", content)


def check_run_free(directory: Path, overwrite: bool) -> None:
    """Raises `OutputError` when `directory` exists and may not be replaced by a new run, and
    `CheckpointError` when no checkpoint could be kept there."""
    check_storable(directory)
    check_free(directory, ("run",), overwrite, _go_on(directory))


def _go_on(directory: Path) -> str:
    return f"go on with it by --resume {directory}, choose another --out, or pass --overwrite"


def open_run(directory: Path) -> Run:
    """An existing run; raises `CheckpointError` naming what is missing or damaged."""
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} is no run: {path} is missing; give a run's directory")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content.get("run_version") if isinstance(content, dict) else None
        if type(version) is int and version != RUN_VERSION:
            raise CheckpointError(
                f"{path} has version {version}; this d3jax reads {RUN_VERSION}; train again "
                f"(d3jax train {content.get('data', 'PREPARED')} --out NEW), or use the d3jax that "
                "wrote it"
            )
        begun = from_json(Begun, content)
    except OSError as error:
        raise CheckpointError(f"can't read {path} ({error.strerror}); allow it") from error
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start the run again") from error
    described, data = read_schema(directory), Path(begun.data)
    return Run(
        directory,
        begun.config,
        described,
        data,
        begun.data_fingerprint,
        begun.training_rows,
        begun.arrays,
    )


def open_same_run(
    directory: Path, config: Config, prepared: Prepared, arrays: dict[str, str] | None = None
) -> Run | None:
    """Return the run that was begun in `directory` with these settings, data and arrays.

    Return None where there is none. Raises `CheckpointError` with the differences for a run of
    other settings or other data.
    """
    if not (directory / "config.json").is_file():
        return None
    run = open_run(directory)
    changed = [
        *differences(run.config.to_json(), config.to_json(), "config."),
        *differences(run.arrays, arrays or {}, "arrays."),
        *differences(run.described.provenance, prepared.provenance, "data."),
        *differences(run.schema.to_json(), prepared.schema.to_json(), "schema."),
    ]
    if not changed and run.fingerprint != prepared.fingerprint:
        changed = ["data: other rows"]
    if changed:
        raise CheckpointError(
            f"{directory} was trained with other settings or data ({'; '.join(changed[:3])}); "
            "choose another place, or delete it"
        )
    return run


def fresh_directory(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2` and so on: the first that doesn't exist."""
    candidates = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def _plain(schema: Schema) -> dict[str, Any]:
    """The schema as JSON gives it back, fields by name so that differences name them."""
    value = json.loads(json.dumps(schema.to_json()))
    return {**value, "fields": {field["name"]: field for field in value["fields"]}}
