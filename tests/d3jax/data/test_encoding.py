"""The rule from raw value to id: kinds, spellings and what is missing, over all Arrow types."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.data.encoding import KindOf, hash_ids, kind_of, parse_numbers, spell, text_of
from d3jax.errors import DataError

INTEGERS = st.integers(-(2**53), 2**53)
ODD = ["", " ", "nan", "NaN", "null", "NA", "<NA>", "true", "TRUE", " False ", "1", "0", "-0", "+7"]
ODD += ["007", "1.", ".5", "-.50", "1e3", "1E-3", "1e999", "12.0", "1_0", "0x1", "inf", "1,5", "١"]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(ODD)
KINDS = ("integer", "decimal", "boolean", "text")


def text(values: Any, kind: pa.DataType | None = None) -> list[str | None]:
    return text_of(pa.array(values, kind), "x", "the table").to_pylist()


def ways_to_write(numbers: list[int]) -> list[pa.Array]:
    """Integers in every Arrow type, and every spelling, that has them."""
    floats = [float(n) for n in numbers]
    words = [str(n) for n in numbers]
    return [
        pa.array(numbers, pa.int64()),
        pa.array(numbers, pa.int64()).dictionary_encode(),
        pa.array(floats, pa.float64()),
        pa.array(numbers, pa.decimal128(20, 0)),
        pa.array([Decimal(n) for n in numbers], pa.decimal256(24, 3)),
        pa.array(words),
        pa.array(words, pa.large_string()),
        pa.array(words, pa.string_view()),
        pa.array([word.encode() for word in words], pa.binary()),
        pa.array([f"{word}.0" for word in words]),
        pa.array([f" {word}.000\t" for word in words]),
        pa.array([f"+{word}" if n >= 0 else word for n, word in zip(numbers, words, strict=True)]),
        pa.array([f"{n:.17e}" for n in floats]),
        pa.array([repr(value) for value in floats]),
        pa.RunEndEncodedArray.from_arrays(
            pa.array(range(1, len(words) + 1), pa.int32()), pa.array(words)
        ),
    ]


@given(st.lists(INTEGERS, min_size=1, max_size=8))
def test_an_integer_is_one_value_whatever_it_comes_as(numbers: list[int]) -> None:
    expected = [str(n) for n in numbers]
    for column in ways_to_write(numbers):
        texts = text_of(column, "x", "the table")
        assert kind_of(texts) == "integer", column.type
        assert spell(texts, "integer").to_pylist() == expected, column.type


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_a_decimal_is_one_value_whatever_it_comes_as(numbers: list[float]) -> None:
    written = [str(Decimal(repr(number))) for number in numbers]
    columns = [pa.array(numbers), pa.array([repr(n) for n in numbers]), pa.array(written)]
    spelt = [spell(text_of(column, "x", "y"), "decimal").to_pylist() for column in columns]
    assert spelt[0] == spelt[1] == spelt[2]
    assert [float(word) for word in spelt[0]] == numbers
    assert all(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", word) for word in spelt[0])


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from([str, bool, "upper", int]))
def test_a_boolean_is_one_value_whatever_it_comes_as(values: list[bool], way: Any) -> None:
    written = [str(v).upper() if way == "upper" else way(v) for v in values]
    texts = text_of(pa.array(written), "x", "the table")
    assert kind_of(texts) == ("integer" if way is int else "boolean")
    assert spell(texts, "boolean").to_pylist() == [str(value).lower() for value in values]
    assert spell(texts, "integer").to_pylist() == [str(int(value)) for value in values]


@given(st.lists(TEXTS | st.none()), st.sampled_from(KINDS))
def test_spelling_is_total_and_happens_once(values: list[str | None], kind: Any) -> None:
    once = spell(pa.array(values, pa.string()), kind)
    assert len(once) == len(values)
    assert "" not in once.to_pylist()
    assert spell(once, kind).equals(once)


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
MOMENTS = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))
UNITS = st.sampled_from(["s", "ms", "us", "ns"])


@given(st.lists(MOMENTS | st.just(datetime.datetime(2024, 1, 1)), min_size=1), UNITS)
def test_a_moment_is_one_value_whatever_it_comes_as(moments: list[Any], unit: str) -> None:
    frame = pd.DataFrame({"x": pd.Series(moments, dtype=f"datetime64[{unit}]")})
    typed = spell(text_of(pa.array(frame["x"]), "x", "y"), "text").to_pylist()
    written = frame.to_csv(index=False).splitlines()[1:]
    iso = [moment.isoformat() for moment in frame["x"]]
    for texts in (written, [str(moment) for moment in frame["x"]], iso):
        assert spell(pa.array(texts), "text").to_pylist() == typed


@given(
    st.lists(
        st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1)), min_size=1
    ),
    ZONES,
)
def test_a_moment_with_a_zone_is_one_value_in_every_zone(moments: list[Any], zone: str) -> None:
    utc = pd.Series(moments, dtype="datetime64[us]").dt.tz_localize("UTC")
    typed = [
        spell(text_of(pa.array(series), "x", "y"), "text").to_pylist()
        for series in (utc, utc.dt.tz_convert(zone))
    ]
    assert typed[0] == typed[1]
    for series in (utc, utc.dt.tz_convert("Asia/Kolkata").dt.floor("s")):
        written = pd.DataFrame({"x": series}).to_csv(index=False).splitlines()[1:]
        expected = spell(text_of(pa.array(series), "x", "y"), "text").to_pylist()
        assert spell(pa.array(written), "text").to_pylist() == expected


@pytest.mark.parametrize(
    "text", ["2024-06-31 00:00:00", "2024-01-01 25:00:00", "2024-01-01 00:00", "24-01-01 00:00:00"]
)
def test_what_is_no_moment_stays_as_it_is(text: str) -> None:
    assert spell(pa.array([text]), "text").to_pylist() == [text]


@given(st.lists(TEXTS.filter(bool)))
def test_text_stays_as_it_is(values: list[str]) -> None:
    assert spell(pa.array(values, pa.string()), "text").to_pylist() == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2.0", "-3", "1e2", None, "", "NaN", "null"], "integer"),
        (["1", "2.5"], "decimal"),
        (["9" * 30], "integer"),
        (["true", "FALSE", None], "boolean"),
        (["0", "1"], "integer"),
        (["1", "true"], "text"),
        (["01234", "5"], "text"),
        (["00"], "text"),
        (["1,5"], "text"),
        (["inf", "1"], "text"),
        (["nan"], "text"),
        ([], "text"),
    ],
)
def test_the_kind_is_the_narrowest_of_all_values(values: list[str | None], kind: str) -> None:
    assert kind_of(values) == kind
    finder = KindOf()
    for value in values:
        finder.add(pa.array([value], pa.string()))
    assert finder.kind == kind


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_keep_every_digit(number: int) -> None:
    assert text([number], pa.int64()) == [str(number)]
    assert spell(pa.array([f"{number}.0"]), "integer").to_pylist() == [str(number)]
    exact = float(number)
    if abs(exact) < 2.0**63:
        assert text([exact]) == [str(exact)]
        assert spell(pa.array([str(exact)]), "integer").to_pylist() == [str(int(exact))]


@given(st.lists(st.floats(allow_nan=False)))
def test_a_float_has_the_text_that_python_writes(numbers: list[float]) -> None:
    assert text(numbers, pa.float64()) == [str(number or 0.0) for number in numbers]


@given(st.lists(st.floats(width=16, allow_nan=False)))
def test_a_float_of_16_bits_has_its_own_shortest_text(numbers: list[float]) -> None:
    small = np.array(numbers, np.float16)
    assert text(small) == [str(number or np.float16(0)) for number in small]


def test_a_truth_has_the_text_that_python_writes() -> None:
    assert text([True, False, None]) == ["True", "False", None]


def test_what_is_missing() -> None:
    assert text([None, float("nan"), 1.5]) == [None, None, "1.5"]
    assert text(np.array([np.nan, 2], np.float16)) == [None, "2.0"]
    assert text(["", None, "x"]) == [None, None, "x"]
    assert text([None, None]) == [None, None]
    for kind in ("integer", "decimal", "boolean"):
        spelt = spell(pa.array(["NaN", "null", "None", " ", "N/A", "x"]), kind)  # type: ignore[arg-type]
        assert spelt.to_pylist() == [None] * 5 + ["x"]
    assert hash_ids(spell(pa.array([None, "", "NaN"]), "integer"), 9).tolist() == [0, 0, 0]


MOMENT = datetime.datetime(2024, 2, 29, 9, 5, 0)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_have_one_text_in_every_unit(unit: str) -> None:
    assert text([MOMENT], pa.timestamp(unit)) == ["2024-02-29 09:05:00"]
    assert text([MOMENT], pa.timestamp(unit, "UTC")) == ["2024-02-29 09:05:00+00:00"]
    berlin = pa.array([MOMENT], pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, "Europe/Berlin"))
    assert text(berlin) == ["2024-02-29 09:05:00+00:00"]
    assert text(pa.array([2 * 10**9], pa.int64()).cast(pa.duration(unit))) == [
        {"s": "2000000000", "ms": "2000000", "us": "2000", "ns": "2"}[unit]
    ]


def test_texts_of_other_types() -> None:
    assert text([MOMENT.date()]) == ["2024-02-29"]
    assert text([MOMENT.date()], pa.date64()) == ["2024-02-29"]
    assert text([MOMENT.replace(microsecond=250000)]) == ["2024-02-29 09:05:00.25"]
    assert text([datetime.time(9, 5)], pa.time32("ms")) == ["09:05:00"]
    assert text([b"\xc3\xa9", b"\xff"]) == ["é", "0xff"]
    assert text([True, None]) == ["True", None]
    assert text([2**64 - 1], pa.uint64()) == ["18446744073709551615"]


@pytest.mark.parametrize("values", [[{"a": 1}], [["a"]], [[{"a": 1}]]])
def test_a_type_without_text_is_refused(values: list[Any]) -> None:
    message = r"^the table: column 'x' is (struct|list)<.*>, which has no text; give strings or num"
    with pytest.raises(DataError, match=message):
        text(values)


@settings(max_examples=50)
@given(st.lists(TEXTS))
def test_numbers_are_finite_or_none(values: list[str]) -> None:
    for value, number in zip(values, parse_numbers(pa.array(values, pa.string())), strict=True):
        try:
            finite = bool(np.isfinite(float(value))) and value.isascii() and "_" not in value
        except ValueError:
            finite = False
        assert np.isfinite(number) == finite
        assert not finite or number == float(value)
