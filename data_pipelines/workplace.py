"""The place where raw rows are read: an engine, a folder on the disk, a progress bar."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from d3jax.console.terminal import Console, Progress
from d3jax.data.prepared import Prepared, check_replaceable
from d3jax.disk import DRAFT, writing
from d3jax.errors import ConfigError
from data_pipelines.prepare import SPACE, prepare
from data_pipelines.raw.engine import duckdb_engine, spark_engine
from data_pipelines.source import DataSet, Workplace


def prepare_data_set(data: DataSet, console: Console | None = None) -> Prepared:
    """Prepare a data set, with its own flags, on the disk of its `out`.

    The console shows a progress bar. Raises `ConfigError` for a path that engines can't take, and
    what `prepare` and the data set's own `read` raise.
    """
    for path in (data.files, data.out):
        if any(ord(character) < 32 for character in str(path.absolute())):
            raise ConfigError(
                f"the path {str(path)!r} holds a line break or another control character, "
                "which the engines can't take; rename it"
            )
    check_replaceable(data.out, data.overwrite)
    with writing(data.out, SPACE), _workplace(data, console) as place:
        return prepare(data.read(place), data.out, data.config, data.overwrite, place.advance)


@contextmanager
def _workplace(data: DataSet, console: Console | None) -> Iterator[Workplace]:
    quiet = console is None
    with ExitStack() as stack, Progress(console=console, transient=True, disable=quiet) as bar:
        data.out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=DRAFT, dir=data.out.parent)
        scratch = Path(stack.enter_context(folder)).resolve()
        task = bar.add_task("reading")

        def advance(name: str, index: int, total: int) -> None:
            bar.update(task, description=name, completed=index, total=total)

        connection = spark_engine(scratch) if data.engine == "spark" else duckdb_engine(scratch)
        yield Workplace(connection, scratch, advance, stack)
