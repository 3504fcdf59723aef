"""Ali_Display_Ad_Click (Zhou et al., 2018): eight days of display ads in two positions.

Fields, the position `pid` as domain and the split follow the D3 experiments (Jia et al., AAAI
2024). About one impression in twenty is of a user without a profile; it stays, its profile fields
unknown. `nonclk` is the label turned around, so it is never read as a field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from d3jax.errors import DataError
from data_pipelines import raw
from data_pipelines.source import DataSet, FieldSource, PrepareConfig, Source, Workplace

if TYPE_CHECKING:
    import ibis

POSITIONS = ("430539_1007", "430548_1007")
"""The values of pid, in the order of the scenarios. (430549_1007 is a common misspelling.)"""

PRICE_BUCKETS = 20

AD = ("cate_id", "campaign_id", "customer", "brand", "price")

PROFILE = (
    *("cms_segid", "cms_group_id", "final_gender_code", "age_level"),
    *("pvalue_level", "shopping_level", "occupation", "new_user_class_level"),
)

FIELDS = (
    *(FieldSource(name) for name in ("user", "adgroup_id", "pid", *AD[:-1])),
    FieldSource("price", quantiles=PRICE_BUCKETS),
    *(FieldSource(name) for name in PROFILE),
)

_LOG, _ADS, _USERS = "raw_sample.csv", "ad_feature.csv", "user_profile.csv"

_DAY, _UTC8 = 24 * 3600, 8 * 3600

_NUMBER = ("[0-9]+", "a whole number")


@dataclass(frozen=True, kw_only=True)
class ADC(DataSet):
    """Ali_Display_Ad_Click: the two positions of ads."""

    config: tyro.conf.OmitArgPrefixes[PrepareConfig] = field(
        default_factory=lambda: PrepareConfig(min_count=10)
    )
    last_day: bool = False
    """Hold out the last of the eight days instead of a share of the rows."""

    def read(self, place: Workplace) -> Source:
        """Return the impressions with their ads and users."""
        return adc(place.connection, self.files, place.scratch, self.last_day)


class _Files(NamedTuple):
    log: raw.Raw
    ads: raw.Raw
    users: raw.Raw


def adc(
    connection: ibis.BaseBackend, directory: Path, scratch: Path, last_day: bool = False
) -> Source:
    """The impressions of raw_sample.csv with their ads and users, as rows to prepare.

    With `last_day` the last day is test and the others are train, less some for validation;
    otherwise the configuration decides. Impressions of one user, ad and second are one event.
    The staged rows stay in the folder `scratch` until they are prepared. Raises `DataError`
    naming file, line, column and value for what the published files can't hold.
    """
    files = _Files(
        *(
            raw.read_raw(connection, raw.file_of(directory, name), scratch)
            for name in (_LOG, _ADS, _USERS)
        )
    )
    _check(files)
    ads = raw.attach(files.log.table, _without_null(files.ads), "adgroup_id")
    users = raw.attach(ads.table, _without_null(files.users), "user", other_key="userid")
    rows = _labelled(users.table, last_day)
    unmatched = {_ADS: ads.unmatched, _USERS: users.unmatched}
    return Source(
        rows=rows,
        fields=FIELDS,
        scenarios=POSITIONS,
        scenario_field="pid",
        scenario_values={position: position for position in POSITIONS},
        user_field="user",
        item_field="adgroup_id",
        key=("user", "adgroup_id", "time_stamp"),
        label_rule="clk",
        files=tuple(path for file in files for path in file.files),
        split="split" if last_day else None,
        split_rule="the last day, in UTC+8, is test",
        time="seconds",
        unmatched={name: count for name, count in unmatched.items() if count},
    )


def _check(files: _Files) -> None:
    log = files.log
    raw.check_values(
        log,
        {
            "user": _NUMBER,
            "time_stamp": ("[0-9]{1,12}", "a number of seconds"),
            "adgroup_id": _NUMBER,
            "pid": ("|".join(POSITIONS), f"one of {', '.join(POSITIONS)}"),
            "clk": ("[01]", "0 or 1"),
            "nonclk": ("[01]", "0 or 1"),
        },
    )
    raw.require_columns(files.ads, AD)
    raw.check_values(files.ads, {"price": (r"[0-9]+(?:\.[0-9]*)?|NULL|", "a number")})
    raw.require_columns(files.users, PROFILE)
    if log.table.count(where=log.table.clk == log.table.nonclk).to_pyarrow().as_py():
        place = next(raw.places(log, lambda row: row["clk"] == row["nonclk"]))
        raise DataError(f"{place}: clk and nonclk are equal; one of them must be 1, the other 0")


def _without_null(file: raw.Raw) -> raw.Raw:
    """Return a file whose word NULL is a missing value."""
    columns = {name: file.table[name].nullif("NULL") for name in file.columns}
    return file._replace(table=file.table.mutate(**columns))


def _labelled(rows: ibis.Table, last_day: bool) -> ibis.Table:
    import ibis

    rows = rows.mutate(
        label=rows.clk.cast("int64"),
        scenario=(rows.pid == POSITIONS[1]).cast("int64"),
        seconds=rows.time_stamp.cast("int64"),
    )
    if not last_day:
        return rows
    latest = rows.seconds.max().to_pyarrow().as_py() or 0
    midnight = latest - (latest + _UTC8) % _DAY
    return rows.mutate(split=ibis.cases((rows.seconds >= midnight, "test")))
