"""The split of rows into train, validation and test: by hash, by user, by time, or as published.

A row's side never depends on the other rows' order, only on the seed and its key or user, or on
its place in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis
from ibis.expr.types import StringValue

from d3jax.errors import ConfigError
from data_pipelines.source import PrepareConfig, Source

_PLAIN = r"^(?:0|-?[1-9][0-9]*|[A-EG-SU-Za-eg-su-z][A-Za-z0-9_-]*)$"
_NUMBER = r"^[ \t]*([-+]?)(?:(0|[1-9][0-9]*)(?:\.([0-9]*))?|\.([0-9]+))[ \t]*$"
_EXPONENT = (
    r"^[ \t]*([-+]?(?:(?:0|[1-9][0-9]{0,200})(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]{1,2})[ \t]*$"
)
_TRUTH = r"^[ \t]*([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])[ \t]*$"


def event_digest(rows: ibis.Table, columns: Sequence[str], seed: int) -> StringValue:
    """The md5 of the seed and the values of `columns`, which tells one event from another."""
    parts = [plain(rows[name].cast("string").fill_null("")) for name in columns]
    return joined([ibis.literal(str(seed)), *parts]).hexdigest("md5")


def joined(parts: Sequence[StringValue]) -> StringValue:
    """The texts with | between them, however many: not one operation inside another."""
    return ibis.literal("|").join(parts)


def plain(text: StringValue) -> StringValue:
    """Spell a text as `d3jax.data.encoding.spell` spells a number or a truth, if it is one.

    It tells events, users and the keys of joins apart before it is known of what kind they are:
    a user in one file as 12 is 12.0 or +12 in another. Numbers with an exponent and a fraction
    stay as they are.
    """
    # Engines agree on how to extract a group, not on how a replacement names one.
    sign, whole, after, alone = (text.re_extract(_NUMBER, n) for n in (1, 2, 3, 4))
    fraction = after + alone
    digits = ibis.ifelse(whole == "", "0", whole)
    rest = fraction.re_extract("^([0-9]*[1-9])0*$", 1)
    body = digits + ibis.ifelse(rest == "", "", ibis.literal(".") + rest)
    number = ibis.ifelse((sign == "-") & (body != "0"), "-", "") + body
    written = text.re_extract(_EXPONENT, 1)
    value = ibis.ifelse(written == "", "0", written).cast("float64")
    exact = (value % 1.0 == 0.0) & (value.abs() < 2.0**63)
    power = ibis.ifelse(exact, value, 0.0).cast("int64").cast("string")
    return ibis.cases(
        # Most keys need no more than this one look.
        (text.re_search(_PLAIN), text),
        (text.re_search(_NUMBER), number),
        (text.re_search(_EXPONENT) & exact, power),
        (text.re_search(_TRUTH), text.re_extract(_TRUTH, 1).lower()),
        else_=text,
    )


def split_of(source: Source, config: PrepareConfig) -> StringValue:
    """The split of each row: the publisher's where there is one, else what `config` asks for.

    Raises `ConfigError` when that needs a column the source lacks, or goes against the publisher.
    """
    rows = source.rows
    if source.split is not None:
        if config.split != "random":
            raise ConfigError(
                f"these data come with a split of their own ({source.split_rule}); it can't be "
                f"by {config.split}"
            )
        drawn = _drawn(event_digest(rows, source.key, config.seed), 0.0, config.validation_fraction)
        return rows[source.split].fill_null(drawn)
    if config.split == "time":
        return _latest(rows, _required(source.time, "time"), config)
    key = source.key
    if config.split == "user":
        key = (_required(source.user_field, "user"),)
    digest = event_digest(rows, key, config.seed)
    return _drawn(digest, config.test_fraction, config.validation_fraction)


def describe_split(source: Source, config: PrepareConfig) -> str:
    """Return what decides the sizes of the splits, for a message."""
    if source.split is not None:
        return (
            f"and column {source.split!r} gives it none; validation_fraction is "
            f"{config.validation_fraction}"
        )
    return (
        f"test_fraction is {config.test_fraction} and validation_fraction "
        f"{config.validation_fraction}"
    )


def split_rule(source: Source, config: PrepareConfig) -> dict[str, Any]:
    """Return how the rows were split, for `schema.json`."""
    rule: dict[str, Any] = {
        "method": "md5 of seed and key",
        "key": list(source.key),
        "seed": config.seed,
        "test_fraction": config.test_fraction,
        "validation_fraction": config.validation_fraction,
    }
    if source.split is not None:
        del rule["test_fraction"]
        rule["method"] = f"{source.split_rule}; what is not, by md5 of seed and key"
    elif config.split == "time":
        rule["method"] = f"the latest rows by {str(source.time).strip()}"
    elif config.split == "user":
        rule |= {"method": "md5 of seed and user", "key": [source.user_field]}
    return rule


def _required(column: str | None, kind: str) -> str:
    if column is None:
        raise ConfigError(f"a split by {kind} needs to know the column of the {kind}; name it")
    return column


def _drawn(digest: StringValue, test: float, validation: float) -> StringValue:
    return ibis.cases(
        (digest < _threshold(test), "test"),
        (digest < _threshold(test + (1 - test) * validation), "validation"),
        else_="train",
    )


def _latest(rows: ibis.Table, time: str, config: PrepareConfig) -> StringValue:
    """The last rows are test, and the last of the others validation; equal times stay together."""
    train_or_validation = 1 - config.test_fraction
    train = train_or_validation * (1 - config.validation_fraction)
    total = rows.count().to_pyarrow().as_py()
    moments = rows.select(time=rows[time]).order_by("time")
    starts = [
        moments.limit(1, offset=min(int(fraction * total), total - 1))
        .time.max()
        .to_pyarrow()
        .as_py()
        for fraction in (train_or_validation, train)
        if total
    ] or [0, 0]
    return ibis.cases(
        (rows[time] >= starts[0], "test"), (rows[time] >= starts[1], "validation"), else_="train"
    )


def _threshold(fraction: float) -> str:
    """The hexadecimal prefix below which this fraction of all digests lies."""
    return f"{int(fraction * 2**32):08x}"
