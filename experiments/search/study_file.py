"""The SQLite file of a search: it is gone on with where it is one, and no other is touched."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna

from d3jax.disk import writing
from d3jax.errors import OutputError
from d3jax.owned import replacing

NAME = "search"
IDENTITY = "identity"
"""The attribute that keeps the settings and the data it is about."""

_OURS = """
    SELECT count(*) FROM studies JOIN study_user_attributes USING (study_id)
    WHERE study_name = ? AND key = ?
"""


def check_study_file(path: Path) -> None:
    """Raises `OutputError` where something lies that is no study of d3jax search."""
    if not path.exists():
        return
    try:
        # Read only, so that SQLite changes nothing.
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            [(found,)] = connection.execute(_OURS, (NAME, IDENTITY))
    except sqlite3.Error:
        found = 0
    if not found:
        raise OutputError(
            f"{path} is not a database of d3jax search, or a damaged one, so it is left alone; "
            "choose another --out, or remove it"
        )


@contextmanager
def opened_study(path: Path, identity: dict[str, Any], minimize: bool) -> Iterator[optuna.Study]:
    """Yields the study in a file, whose connections close at the end.

    A study that isn't there is made, whole, with its `identity`.
    """
    check_study_file(path)
    with writing(path):
        if not path.exists():
            with replacing(path) as draft, opened_storage(draft) as storage:
                direction: Literal["minimize", "maximize"] = "minimize" if minimize else "maximize"
                study = optuna.create_study(storage=storage, study_name=NAME, direction=direction)
                study.set_user_attr(IDENTITY, identity)
    with opened_storage(path) as storage:
        yield optuna.load_study(storage=storage, study_name=NAME)


@contextmanager
def opened_storage(path: Path) -> Iterator[optuna.storages.RDBStorage]:
    """Yields Optuna's storage in a file, whose connections close at the end."""
    storage = _storage(path)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """Optuna's storage in a file. SQLite gets the path itself, for in a URL some characters mean
    something."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path.resolve(), timeout=60, check_same_thread=False)

    return optuna.storages.RDBStorage("sqlite:///search.db", engine_kwargs={"creator": connect})
