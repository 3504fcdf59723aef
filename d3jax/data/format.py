"""The format of text files: what separates columns, and how letters are encoded.

This file imports no library, so that the command line can explain itself at once.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from d3jax.errors import ConfigError, DataError

ATOMIC = (".inter", ".user", ".item")
"""Suffixes of RecBole's atomic files (Zhao et al., 2021): tab-separated, `name:type` headers."""

_SEPARATORS = {".csv": ",", ".tsv": "\t", **dict.fromkeys(ATOMIC, "\t")}


@dataclass(frozen=True)
class Format:
    """The format of text files; quotes are those of RFC 4180, and an empty value is missing."""

    separator: str | None = None
    """Between the columns: one character, or 'tab'; told by the file's suffix when not given."""
    encoding: str = "utf-8"
    """A name that Python knows, such as latin-1, gbk or utf-16."""

    def __post_init__(self) -> None:
        separator = self.separator or "tab"
        if (separator != "tab" and not re.fullmatch(r"[\t -~]", separator)) or separator == '"':
            raise ConfigError(
                f"separator is {separator!r}; it must be one ASCII character other than a quote "
                "or a line end, or the word tab"
            )
        if not _reads_text(self.encoding):
            raise ConfigError(
                f"encoding is {self.encoding!r}, which Python does not know as one of text files; "
                "utf-8, latin-1, gbk and utf-16 are some that it does"
            )

    def separator_of(self, path: Path) -> str:
        """The separator of a file; raises `DataError` when neither flag nor suffix tells it."""
        if self.separator:
            return "\t" if self.separator == "tab" else self.separator
        suffix = suffix_of(path)
        if suffix not in _SEPARATORS:
            raise DataError(
                f"the suffix of {path} does not tell what separates its columns; "
                "say it with --separator"
            )
        return _SEPARATORS[suffix]


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in small letters, that of what is packed for .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _reads_text(encoding: str) -> bool:
    """Return whether text comes back from its bytes one by one; codecs such as idna don't."""
    sample = "a,b\r\n1,2\n"
    try:
        decoder = codecs.getincrementaldecoder(encoding)("ignore")
        parts = [decoder.decode(bytes([byte])) for byte in sample.encode(encoding)]
        return "".join(parts) + decoder.decode(b"", final=True) == sample
    except Exception:
        # What is no codec of text raises whatever it likes, an AssertionError among others.
        return False
