"""The one rule from a raw value to an id: what a value is, how it is spelt, what is missing.

A value of any Arrow type has a text (`text_of`). A field has a kind, which the training values
decide (`KindOf`), and the kind fixes how the field's values are spelt (`spell`): 12, 12.0 and
"12" are one integer, True and "true" one boolean, and text stays as it is. Vocabularies, hashes
and scenarios compare spellings, so a value has one id, whatever file or type it arrives in.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3jax.batch import UNKNOWN, Kind
from d3jax.errors import DataError

NUMBER = (
    r"[-+]?(?:(?:[0-9]{1,200}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?"
    r"|[0-9](?:\.[0-9]*)?[eE](?:-[0-9]{3}|\+?(?:[12][0-9]{2}|30[0-7])))"
)
"""A decimal number that a float64 holds, leading zeros allowed; a regular expression that Arrow,
DuckDB, Spark and Python read alike."""

# A number that can be an id: 007 is a text, for its zeros tell it from 7.
_ID = r"^[ \t]*[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?[ \t]*$"
_SPELT = r"^(?:0|-?(?:[1-9][0-9]*|(?:0|[1-9][0-9]*)\.[0-9]*[1-9]))$"
_WHOLE = r"^(-?[1-9][0-9]*|0)\.0*$"
_BOOLEAN = r"^[ \t]*(?i:true|false)[ \t]*$"
_MISSING = r"^[ \t]*(?i:nan|null|none|na|n/a|<na>)?[ \t]*$"
# A moment as ISO 8601, and tables in CSV, write it.
_MOMENT = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?"
    r"(Z|[+-][0-9]{2}:?[0-9]{2})?$"
)
_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}

_DIGITS = 12
"""Hexadecimal digits of an md5 that make the number to be divided: 48 bits."""


def text_of(column: pa.Array, name: str, where: str) -> pa.StringArray:
    """Return the text of every value of an Arrow array; NaN and "" are null, for both are missing.

    A truth and a float are written as Python writes them, and so do tables of Python's in CSV; a
    moment in UTC and without zeros after its seconds, bytes that are no UTF-8 in hexadecimal.
    Raises `DataError` naming column and place for a type without a text, such as a struct.
    """
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return text_of(column.storage, name, where)
    if pa.types.is_dictionary(kind):
        return text_of(column.dictionary, name, where).take(column.indices)
    if pa.types.is_run_end_encoded(kind):
        return text_of(pc.run_end_decode(column), name, where)
    try:
        text = _text(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise DataError(
            f"{where}: column {name!r} is {kind}, which has no text; give strings or numbers"
        ) from error
    return pc.if_else(pc.equal(text, ""), None, text)


def _text(column: pa.Array) -> pa.StringArray:
    kind = column.type
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False")
    if pa.types.is_floating(kind):
        return _text_of_floats(column)
    if pa.types.is_decimal(kind):
        return _plain(column.cast(pa.string()))
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return _text_of_times(column)
    if pa.types.is_duration(kind):
        ticks = column.cast(pa.int64()).cast(pa.string())
        return spell(pc.binary_join_element_wise(ticks, f"e-{_UNITS[kind.unit]}", ""), "decimal")
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        if column.type not in (pa.binary(), pa.large_binary(), pa.binary_view()):
            column = column.cast(pa.binary())
        return pa.array([_text_of_bytes(value) for value in column.to_pylist()], pa.string())


def _text_of_floats(column: pa.Array) -> pa.StringArray:
    """The shortest digits that make the float again: 12 is 12.0, and so is -0 like 0."""
    values = column.to_numpy(zero_copy_only=False)
    missing, size = np.isnan(values), np.abs(values).astype(np.float64)
    whole = (values == np.floor(values)) & (size < 1e16)
    digits = pa.array(np.where(whole, values, values.dtype.type(0)).astype(np.int64)).cast(
        pa.string()
    )
    text = pc.if_else(
        pa.array(whole), pc.binary_join_element_wise(digits, ".0", ""), column.cast(pa.string())
    )
    # Arrow writes large, small and infinite floats and those of 16 bits otherwise.
    odd = ~whole & ~missing & ((size >= 1e10) | (size < 1e-4) | (values.dtype == np.float16))
    if odd.any():
        written = pa.array([str(value) for value in values[odd]], pa.string())
        text = pc.replace_with_mask(text, pa.array(odd), written)
    return pc.if_else(pa.array(missing), None, text)


def _text_of_times(column: pa.Array) -> pa.StringArray:
    """As ISO 8601 has it, with a blank between date and time, and in UTC where it has a zone.

    Midnight without a zone is a date, for that is how dates become moments, and come back.
    """
    zone = pa.types.is_timestamp(column.type) and column.type.tz is not None
    if zone:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
        column = column.cast(pa.timestamp(column.type.unit))
    text = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    text = pc.replace_substring_regex(text, r"(\.[0-9]*[1-9])0+$", r"\1")
    if zone:
        return pc.binary_join_element_wise(text, "+00:00", "")
    return pc.replace_substring_regex(text, r"^(.+) 00:00:00$", r"\1")


def _text_of_bytes(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex() if value else None


class KindOf:
    """Find the kind of a field from its values, seen part by part.

    It is the narrowest that every present value has: integer, decimal, boolean, else text. A
    number with a leading zero (007) is a text. A field without values is a text too.
    """

    def __init__(self) -> None:
        self._seen = self._numbers = self._whole = self._booleans = 0

    def add(self, texts: pa.StringArray) -> None:
        """Take more values into account."""
        present = texts.filter(pc.invert(_is_missing(texts)))
        self._seen += len(present)
        if self._numbers + len(present) == self._seen:
            numbers = present.filter(pc.match_substring_regex(present, _ID))
            self._numbers += len(numbers)
            self._whole += pc.sum(pc.invert(pc.match_substring(_plain(numbers), "."))).as_py() or 0
        if self._booleans + len(present) == self._seen:
            self._booleans += pc.sum(pc.match_substring_regex(present, _BOOLEAN)).as_py() or 0

    @property
    def kind(self) -> Kind:
        """The kind of what was seen so far."""
        if not self._seen:
            return "text"
        if self._numbers == self._seen:
            return "integer" if self._whole == self._seen else "decimal"
        return "boolean" if self._booleans == self._seen else "text"


def kind_of(texts: Sequence[str | None] | pa.StringArray) -> Kind:
    """Return the kind of a field that has just these values."""
    finder = KindOf()
    finder.add(pa.array(texts, pa.string()))
    return finder.kind


def spell(texts: pa.StringArray, kind: Kind) -> pa.StringArray:
    """Return how a field of `kind` spells each text; null where a value is missing.

    Numbers lose blanks around them, plus signs, exponents and zeros that say nothing, and keep
    every digit; true and false count as 1 and 0 among numbers, and these as true and false among
    booleans. A text that does not fit the kind stays as it is, and so does every text of a text
    field but a moment, which is spelt as `text_of` spells one. Spelling twice changes nothing.
    """
    if kind == "text":
        return _spell_moments(pc.if_else(pc.equal(texts, ""), None, texts))
    spelt = pc.if_else(_is_missing(texts), None, texts)
    truths = pc.match_substring_regex(spelt, _BOOLEAN)
    numbers = pc.match_substring_regex(spelt, _ID)
    if pc.any(truths).as_py():
        true = pc.starts_with(pc.ascii_lower(pc.utf8_trim(spelt, " \t")), "t")
        names = ("true", "false") if kind == "boolean" else ("1", "0")
        spelt = pc.if_else(truths, pc.if_else(true, *names), spelt)
    if pc.any(numbers).as_py():
        plain = pc.replace_with_mask(spelt, numbers, _plain(spelt.filter(numbers)))
        if kind == "boolean":
            plain = pc.if_else(pc.equal(plain, "1"), "true", plain)
            plain = pc.if_else(pc.equal(plain, "0"), "false", plain)
            spelt = pc.if_else(pc.is_in(plain, pa.array(["true", "false"])), plain, spelt)
        else:
            spelt = plain
    return spelt


def _spell_moments(texts: pa.StringArray) -> pa.StringArray:
    """2024-01-01T00:00:00.000 is 2024-01-01, and a moment with a zone is in UTC."""
    found = pc.fill_null(pc.match_substring_regex(texts, _MOMENT), False)
    if not pc.any(found).as_py():
        return texts
    coded = texts.filter(found).dictionary_encode()
    spelt = pa.array([_moment(text) for text in coded.dictionary.to_pylist()], pa.string())
    return pc.replace_with_mask(texts, found, spelt.take(coded.indices))


def _moment(text: str) -> str:
    """The moment in UTC where it has a zone, a date alone where it is midnight without one; a text
    that is none, such as the 31st of June, stays as it is."""
    written = re.match(_MOMENT, text)
    assert written is not None
    date, time, fraction, zone = written.groups()
    fraction = (fraction or "").rstrip("0").rstrip(".")
    try:
        moment = datetime.datetime.fromisoformat(f"{date} {time}{zone or ''}")
        if zone is not None:
            return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}{fraction}+00:00"
    except (ValueError, OverflowError):
        return text
    return date if time == "00:00:00" and not fraction else f"{date} {time}{fraction}"


def _is_missing(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.fill_null(pc.match_substring_regex(texts, _MISSING), True)


def _plain(numbers: pa.StringArray) -> pa.StringArray:
    """The numbers in digits, a point only before a fraction; each must match `_ID`."""
    numbers = pc.replace_substring_regex(pc.utf8_trim(numbers, " \t"), _WHOLE, r"\1")
    rest = pc.invert(pc.match_substring_regex(numbers, _SPELT))
    if not pc.any(rest).as_py():
        return numbers
    exact = [_digits(text) for text in numbers.filter(rest).to_pylist()]
    return pc.replace_with_mask(numbers, rest, pa.array(exact, pa.string()))


def _digits(text: str) -> str:
    """An exponent is how a float64 is written, so it has the digits of the float64 that it is."""
    if "e" in text.lower() and float(text).is_integer():
        return str(int(float(text)))
    digits = f"{Decimal(text):f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits in ("-0", "") else digits


def hash_ids(spelt: pa.StringArray, buckets: int) -> np.ndarray:
    """Return ids [R] int32 from 1 to `buckets` by the md5 of each spelling; unknown where null."""
    coded = spelt.dictionary_encode()
    values = coded.dictionary.to_pylist()
    ids = np.array([_hash_id(value, buckets) for value in values] + [UNKNOWN], np.int32)
    return ids[pc.fill_null(coded.indices, len(values)).to_numpy()]


def _hash_id(value: str, buckets: int) -> int:
    return 1 + int(hashlib.md5(value.encode()).hexdigest()[:_DIGITS], 16) % buckets


def parse_numbers(texts: pa.StringArray) -> np.ndarray:
    """Return the numbers that texts write, [R] float64; NaN for a text that writes none."""
    written = pc.match_substring_regex(texts, f"^[ \\t]*{NUMBER}[ \\t]*$")
    trimmed = pc.utf8_trim(pc.if_else(written, texts, None), " \t")
    return pc.cast(trimmed, pa.float64()).to_numpy(zero_copy_only=False)


def bucket_of(numbers: np.ndarray, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the bucket of each number, from 0 below the first edge; NaN is in the last."""
    return np.searchsorted(np.asarray(edges, np.float64), numbers, side="right").astype(np.int32)


def number_ids(texts: pa.StringArray, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return one more than the bucket of each text's number; unknown where it writes none."""
    numbers = parse_numbers(texts)
    return np.where(np.isnan(numbers), UNKNOWN, bucket_of(numbers, edges) + 1).astype(np.int32)
