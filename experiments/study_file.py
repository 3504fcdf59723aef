"""The SQLite file of a search: it is gone on with where it is one, and no other is touched."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna

from d3jax.disk import writing
from d3jax.errors import OutputError
from d3jax.owned import replacing

NAME = "search"
IDENTITY = "identity"
"""What the study's file keeps of the settings and the data it is about."""

_OURS = """
    SELECT count(*) FROM studies JOIN study_user_attributes USING (study_id)
    WHERE study_name = ? AND key = ?
"""


def check_study_file(path: Path) -> None:
    """Raises `OutputError` where something lies that is no study of d3jax search."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{_uri(path)}?mode=ro", uri=True)) as connection:
            [(found,)] = connection.execute(_OURS, (NAME, IDENTITY))
    except sqlite3.Error:
        found = 0
    if not found:
        raise OutputError(
            f"{path} is not a database of d3jax search, or a damaged one, so it is left alone; "
            "choose another --out, or remove it"
        )


def open_study_file(path: Path, identity: dict[str, Any], direction: str) -> optuna.Study:
    """The study in a file; one that isn't there is made, whole, with its `identity`."""
    check_study_file(path)
    with writing(path):
        if not path.exists():
            with replacing(path) as draft, _storage(draft) as storage:
                study = optuna.create_study(storage=storage, study_name=NAME, direction=direction)
                study.set_user_attr(IDENTITY, identity)
        return optuna.load_study(storage=_url(path), study_name=NAME)


@contextmanager
def _storage(path: Path) -> Iterator[optuna.storages.RDBStorage]:
    """A database that is closed after the block."""
    storage = optuna.storages.RDBStorage(_url(path))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _url(path: Path) -> str:
    return f"sqlite:///{_uri(path)}?uri=true"


def _uri(path: Path) -> str:
    """The path as SQLite takes it literally, whatever characters it has."""
    return f"file:{quote(str(path.resolve()))}"
