"""KuaiRand (Gao et al., 2022): short videos in the tabs of an app, as Pure, 1K or 27K.

A tab is a domain. What is_click means depends on it: a click where two columns of covers are
shown, and where one video fills the screen that it was watched to its end or for seven seconds.
What a viewer did after the click is never a field. Random exposure is left out unless it is asked
for, and is_rand is then a field, for such rows follow another distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from d3jax.errors import ConfigError, DataError
from data_pipelines import raw
from data_pipelines.source import DataSet, FieldSource, Source, Workplace

if TYPE_CHECKING:
    import ibis

TABS = ("0", "1", "2", "4", "6")
"""The tabs that Scenario-Wise-Rec (Li et al., 2024) takes for domains."""

OUTCOMES = (
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"),
    *("play_time_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter"),
)
"""Known only after the exposure."""

LOG_FIELDS = ("user_id", "video_id", "tab")

USER_FIELDS = (
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *("follow_user_num_range", "fans_user_num_range", "friend_user_num_range"),
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)

VIDEO_FIELDS = ("author_id", "video_type", "upload_type", "music_type", "tag")

VERSIONS = ("pure", "1k", "27k")

_EARLY, _LATE, _RANDOM = (
    *("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08"),
    "log_random_4_22_to_5_08",
)


@dataclass(frozen=True, kw_only=True)
class KuaiRand(DataSet):
    """KuaiRand-Pure, 1K or 27K: the tabs of a video app."""

    fields: tuple[str, ...] = ()
    """Columns of the user and video files to use instead of the usual ones."""
    tabs: tuple[str, ...] = TABS
    """The scenarios; rows of other tabs are left out."""
    both_periods: bool = False
    """Use the log of the first two weeks too."""
    random_exposure: bool = False
    """Mix the randomly shown videos in, told apart by the field is_rand."""

    def read(self, place: Workplace) -> Source:
        """Return the impressions with their users and videos."""
        return kuairand(
            place.connection,
            self.files,
            place.scratch,
            fields=self.fields,
            tabs=self.tabs,
            both_periods=self.both_periods,
            random_exposure=self.random_exposure,
        )


def kuairand(
    connection: ibis.BaseBackend,
    directory: Path,
    scratch: Path,
    *,
    fields: Sequence[str] = (),
    tabs: Sequence[str] = TABS,
    both_periods: bool = False,
    random_exposure: bool = False,
) -> Source:
    """The impressions in `directory` with their users and videos, as rows to prepare.

    The log is that of the second period, or of `both_periods`. `fields` are other columns than
    the usual ones; the scenario's is always among them. The staged rows stay in the folder
    `scratch` until they are prepared. Raises `ConfigError` for a field that is an outcome, and
    `DataError` naming file, line, column and value for what the published files can't hold.
    """
    import ibis

    names = _field_names(fields, random_exposure)
    version = _version(directory)
    logs = [_LATE, *([_EARLY] if both_periods else []), *([_RANDOM] if random_exposure else [])]
    log = [_read(connection, directory, f"{name}_{version}", scratch) for name in logs]
    for each in log:
        _check_log(each)
    impressions = ibis.union(*(each.table for each in log)) if len(log) > 1 else log[0].table
    users = _read(connection, directory, f"user_features_{version}", scratch)
    videos = _read(connection, directory, f"video_features_basic_{version}", scratch)
    kept, dropped = _kept(impressions, tabs, random_exposure)
    with_users = raw.attach(kept, users, "user_id")
    rows = raw.attach(with_users.table, videos, "video_id")
    if missing := [name for name in names if name not in rows.table.columns]:
        raise DataError(
            f"there is no column {missing[0]!r} in {directory}; the files have "
            f"{', '.join(rows.table.columns)}"
        )
    unmatched = {users.name: with_users.unmatched, videos.name: rows.unmatched}
    return Source(
        rows=_labelled(rows.table, tabs),
        fields=tuple(FieldSource(name, "," if name == "tag" else None) for name in names),
        scenarios=tuple(f"tab {tab}" for tab in tabs),
        scenario_field="tab",
        scenario_values={tab: f"tab {tab}" for tab in tabs},
        user_field="user_id",
        item_field="video_id",
        key=("user_id", "video_id", "time_ms"),
        label_rule="is_click",
        files=tuple(path for file in (*log, users, videos) for path in file.files),
        dropped=dropped,
        time="moment",
        unmatched={name: count for name, count in unmatched.items() if count},
    )


def _field_names(fields: Sequence[str], random_exposure: bool) -> list[str]:
    for name in fields:
        if name in OUTCOMES:
            raise ConfigError(
                f"field {name!r} is known only after the exposure, so it gives the label away; "
                "leave it out"
            )
    names = [*LOG_FIELDS, *(fields or (*USER_FIELDS, *VIDEO_FIELDS))]
    return list(dict.fromkeys([*names, *(["is_rand"] if random_exposure else [])]))


def _version(directory: Path) -> str:
    found = [name for name in VERSIONS if [*directory.glob(f"{_LATE}_{name}*.csv*")]]
    match found:
        case [version]:
            return version
        case []:
            raise DataError(
                f"{directory} has no {_LATE}_pure.csv, _1k.csv or _27k.csv; give the data folder "
                "of KuaiRand-Pure, 1K or 27K"
            )
        case _:
            raise DataError(
                f"{directory} has the logs of {' and '.join(found)}; keep one version in a folder"
            )


def _read(connection: ibis.BaseBackend, directory: Path, stem: str, scratch: Path) -> raw.Raw:
    """A file, or the parts into which the larger ones of 27K are cut."""
    files = sorted(directory.glob(f"{stem}.csv*")) or sorted(directory.glob(f"{stem}_part*.csv*"))
    if not files:
        raise DataError(f"{directory} has no {stem}.csv; unpack the data set into it")
    return raw.read_raw(connection, files, scratch)


def _check_log(log: raw.Raw) -> None:
    flag = ("[01]", "0 or 1")
    raw.check_values(
        log,
        {
            "user_id": ("[0-9]+", "a whole number"),
            "video_id": ("[0-9]+", "a whole number"),
            "time_ms": ("[0-9]{1,15}", "a number of milliseconds"),
            "is_click": flag,
            "is_rand": flag,
            "tab": ("[0-9]+", "a whole number"),
        },
    )


def _kept(
    log: ibis.Table, tabs: Sequence[str], random_exposure: bool
) -> tuple[ibis.Table, dict[str, int]]:
    """The rows of the tabs, and how many others there were by reason."""
    is_other = ~log.tab.isin(tuple(tabs))
    is_random = (log.is_rand == "1") & (not random_exposure)
    counted = log.agg(tab=log.count(where=is_other), random=log.count(where=is_random & ~is_other))
    counts = counted.to_pyarrow().to_pylist()[0]
    dropped = {f"tab other than {', '.join(tabs)}": counts["tab"]}
    dropped["random exposure"] = counts["random"]
    return log.filter(~is_other & ~is_random), {why: n for why, n in dropped.items() if n}


def _labelled(rows: ibis.Table, tabs: Sequence[str]) -> ibis.Table:
    import ibis

    index = ibis.cases(*((rows.tab == tab, index) for index, tab in enumerate(tabs)))
    return rows.mutate(
        label=rows.is_click.cast("int64"),
        scenario=index.cast("int64"),
        moment=rows.time_ms.cast("int64"),
    )
