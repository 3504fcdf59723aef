"""A folder of small raw files, to be written and spoiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class RawFiles:
    """Comma-separated files with a header in `folder`."""

    folder: Path

    def write(self, name: str, header: str, rows: list[tuple[Any, ...]]) -> None:
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def edit(self, name: str, change: Callable[[list[str]], list[str]]) -> None:
        path = self.folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
