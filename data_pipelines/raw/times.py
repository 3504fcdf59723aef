"""Times as numbers that every engine computes alike, and that sort as time goes by."""

from __future__ import annotations

import ibis
from ibis.expr.types import IntegerValue, StringValue

WHOLE = "-?[0-9]{1,18}|[1-8][0-9]{18}"
"""A whole number that int64 holds, nanoseconds since 1970 among them."""

_MOMENT = (
    r"^([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})"
    r"(?:[ T]+([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?"
    r"[ ]?(?:Z|UTC|[-+](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)?)?$"
)
_ZONE = r":[0-9]{2}(?:[.,][0-9]+)?[ ]?([-+])([0-9]{2}):?([0-9]{2})?$"
"""Apart from the moment, for DuckDB counts groups to 9 only."""
_SECOND = 1_000_000


def microseconds(text: StringValue) -> IntegerValue:
    """Microseconds since 1970 of dates and moments as ISO 8601 has them, in UTC where no zone is.

    NULL for what is none: no such month, day, hour, minute or second, or another way to write it.
    """
    year, month, day, hour, minute, second = (_part(text, _MOMENT, n) for n in range(1, 7))
    fraction = text.re_extract(_MOMENT, 7).rpad(6, "0").left(6).cast("int64")
    east = ibis.ifelse(text.re_extract(_ZONE, 1) == "-", -1, 1)
    offset = east * (_part(text, _ZONE, 2) * 3600 + _part(text, _ZONE, 3) * 60)
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    longest = ibis.cases(
        (month == 2, 28 + leap.cast("int64")), (month.isin((4, 6, 9, 11)), 30), else_=31
    )
    exists = (month >= 1) & (month <= 12) & (day >= 1) & (day <= longest) & (year >= 1)
    exists &= (hour <= 23) & (minute <= 59) & (second <= 60)
    written = text.re_search(_MOMENT)
    return ibis.ifelse(written & exists, seconds * _SECOND + fraction, ibis.null("int64"))


def _part(text: StringValue, form: str, group: int) -> IntegerValue:
    """A group of digits as a number, 0 where it is not written."""
    part = text.re_extract(form, group).fill_null("")
    return ibis.ifelse(part == "", "0", part).cast("int64")


def _days(year: IntegerValue, month: IntegerValue, day: IntegerValue) -> IntegerValue:
    """Days since 1970 of a date of the Gregorian calendar, by whole numbers (Hinnant, 2013).

    The year is counted from March, so that a leap day is its last.
    """
    year = year - (month <= 2).cast("int64")
    era = (year // 400).cast("int64")
    of_era = year - era * 400
    shifted = (month + 9) % 12
    of_year = ((153 * shifted + 2) // 5).cast("int64") + day - 1
    leaps = (of_era // 4).cast("int64") - (of_era // 100).cast("int64")
    return era * 146097 + of_era * 365 + leaps + of_year - 719468
