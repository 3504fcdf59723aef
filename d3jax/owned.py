"""d3jax replaces or removes only what it has made itself, as a marker in it says.

A directory that d3jax makes has a file .d3jax that names its kind, from its first moment on. It is
built under another name and renamed when it is whole, so there never is half of one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from d3jax.disk import DRAFT, writing
from d3jax.errors import OutputError

MARKER = ".d3jax"
LOCK = "lock"
KINDS = {
    "run": "a run",
    "seeds": "a folder of runs side by side",
    "prepared": "a prepared directory",
    "synthetic": "made-up data of d3jax train",
    "export": "an exported model",
    "comparison": "a folder of d3jax compare",
    "pictures": "a folder of d3jax inspect",
    "chaos": "a folder of d3jax chaos",
}
"""The kinds of directories, in words."""

_DESCRIBED = {"schema.json", "vocabularies"}
_DATA = {*_DESCRIBED, "checksums.json", "train", "validation", "test"}
_RUN = {
    *_DESCRIBED,
    "config.json",
    "checkpoints",
    "metrics.jsonl",
    "tensorboard",
    "evaluation.json",
    "cell.json",
    "figures",
    "model",
}
CONTENTS = {
    "run": _RUN,
    "prepared": _DATA,
    "synthetic": _DATA,
    "seeds": {"seed-*", "summary.json"},
    "export": {*_DESCRIBED, "checksums.json", "program.stablehlo", "weights.npz"},
}
"""The contents of a directory, by the kinds that d3jax replaces; the rest is somebody's."""


def kind_of(directory: Path) -> str | None:
    """The kind that the marker names; None for a directory that d3jax didn't make."""
    try:
        kind = (directory / MARKER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return kind if kind in KINDS else None


def check_free(
    directory: Path,
    kinds: Sequence[str],
    overwrite: bool,
    cure: str = "choose another directory or pass --overwrite",
    inputs: Sequence[Path] = (),
) -> None:
    """Raises `OutputError` unless a directory of the first of `kinds` may be made here.

    It may where nothing is, or nothing but an empty directory; with `overwrite` also where one of
    `kinds` is, unless it is in use, or holds one of the `inputs` or what d3jax didn't put there.
    `cure` says what to do instead.
    """
    if not os.path.lexists(directory) or _is_empty(directory):
        return
    if not overwrite:
        raise OutputError(f"{directory} exists; {cure}")
    kind = kind_of(directory)
    if kind not in kinds:
        found = f"{KINDS[kind]}, and no" if kind else "no"
        wanted = KINDS[kinds[0]].removeprefix("a ").removeprefix("an ")
        raise OutputError(
            f"{directory} is {found} {wanted} that d3jax made, so it is not replaced; choose "
            "another place"
        )
    if foreign := _foreign(directory, kind or ""):
        raise OutputError(
            f"{directory} holds {foreign}, which d3jax didn't put there, so it is not replaced; "
            "move that away, or choose another place"
        )
    for path in inputs:
        if path.resolve().is_relative_to(directory.resolve()):
            raise OutputError(f"{directory} holds {path}, so it is not replaced; choose another")
    with _unused(directory):
        pass


@contextmanager
def building(
    directory: Path,
    kind: str,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
    cure: str = "choose another directory or pass --overwrite",
    inputs: Sequence[Path] = (),
    need: str = "some",
) -> Iterator[Path]:
    """Yields a new folder that becomes `directory` when the block succeeds, and never half of it.

    With `overwrite` it takes the place of a directory of its `kind` or one that it `replaces`,
    which is removed only once the new one is in place. When the block raises, nothing but the new
    folder is lost. Raises what `check_free` and `writing` raise.
    """
    kinds = (kind, *replaces)
    with writing(directory, need):
        check_free(directory, kinds, overwrite, cure, inputs)
        place = directory.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=DRAFT, dir=place.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            _mark(new, kind)
            yield new
            check_free(directory, kinds, overwrite, cure, inputs)
            with _unused(place):
                _replace(place, new, Path(scratch) / "old")


def claim(directory: Path, kind: str) -> None:
    """Makes a folder of `kind`, which several calls of d3jax add to, where there is none yet.

    Raises `OutputError` when it holds files of others.
    """
    with writing(directory):
        if kind_of(directory) == kind:
            return
        check_free(directory, (kind,), False, f"it is not {KINDS[kind]}, so choose another --out")
        directory.mkdir(parents=True, exist_ok=True)
        _mark(directory, kind)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keeps other processes from using a directory that exists; raises `OutputError` there.

    The lock is the operating system's, so it is gone with the process, however that ends.
    """
    path = directory / LOCK
    with ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(path.open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise OutputError(
                f"process {file.read().strip() or 'unknown'} is training {directory} already; "
                "wait for it, or stop it"
            ) from error
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise OutputError(f"{directory} was replaced by another process; look who writes it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_output(
    path: Path, inputs: Sequence[Path] = (), ours: Callable[[Path], bool] | None = None
) -> None:
    """Raises `OutputError` unless a file may be written here.

    It may where none is, and in the place of one that is none of the `inputs`, by whatever name or
    link, and that is `ours`, when that is given.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the same file as {source}, which is read; choose another")
    if ours is not None and path.is_file() and not ours(path):
        raise OutputError(
            f"{path} exists and was not written by d3jax, so it is not replaced; choose another"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a new file that becomes `path` when the block succeeds.

    Half a file never stays.
    """
    if path.exists() and not path.is_file():  # such as a pipe
        yield path
        return
    place = path.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f"{DRAFT}{secrets.token_hex(6)}{place.suffix}")
    try:
        yield draft
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _unused(directory: Path) -> Iterator[None]:
    """`exclusive`, for a directory that may be none, or of a kind that is never locked."""
    if (directory / LOCK).exists():
        with exclusive(directory):
            yield
    else:
        yield


def _mark(directory: Path, kind: str) -> None:
    path = directory / MARKER
    try:
        path.write_text(f"{kind}\n", encoding="utf-8")
    except OSError:
        # An empty one would make the directory nobody's.
        path.unlink(missing_ok=True)
        raise


def _foreign(directory: Path, kind: str) -> str | None:
    """Return the name of something in a directory of a kind that d3jax doesn't put there."""
    if kind not in CONTENTS:
        return None
    known = {*CONTENTS[kind], MARKER, LOCK, f"{DRAFT}*"}
    names = sorted(path.name for path in directory.iterdir())
    return next((n for n in names if not any(fnmatchcase(n, each) for each in known)), None)


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _replace(directory: Path, new: Path, old: Path) -> None:
    if not directory.exists():
        new.rename(directory)
        return
    directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        old.rename(directory)
        raise
