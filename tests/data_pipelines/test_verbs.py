"""`d3jax prepare`, `check` and `describe` on small files, by the command itself."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from d3jax.cli import main
from d3jax.console.safe_text import visible
from d3jax.data.prepared import open_prepared
from d3jax.division import Division
from data_pipelines.describe import division_grid, split_facts
from tests.names import HOSTILE

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    rows = [f"u{n % 50},i{n % 7},{n % 5},{n},t{n % 2}" for n in range(500)]
    (folder / "log.csv").write_text("\n".join(["user,item,stars,time,tab", *rows, *rows[:9]]))
    users = [f"u{n},{n * 3}.5,{n}" for n in range(45)]
    (folder / "users.csv").write_text("\n".join(["user,income,shoe", *users]))
    return folder


def flags(raw: Path, out: Path) -> list[str]:
    return [
        *("prepare", "table", str(raw / "log.csv"), str(out), "--label", "stars>2"),
        *("--scenario", "tab", "--user", "user", "--item", "item", "--time", "time"),
        *("--join", f"{raw}/users.csv=user", "--numeric", "income=4"),
    ]


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    main(flags(raw, out))
    return out


def said(capsys: Shown) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def refusal(arguments: list[str], capsys: Shown) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    return said(capsys)


def test_prepare_says_what_happened(raw: Path, tmp_path: Path, capsys: Shown) -> None:
    main(flags(raw, tmp_path / "out"))
    shown = said(capsys)
    assert "known values per field: user 50, item 7, income 4, tab 2" in shown
    assert "50 rows are unknown to users.csv; the columns it adds are missing there" in shown
    assert "columns left out, since no flag names them: shoe" in shown
    assert "9 rows repeat the user, item, time of another; such rows are on the same side" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_flags_of_the_configuration_are_used(raw: Path, tmp_path: Path) -> None:
    main([*flags(raw, tmp_path / "out"), "--split", "time", "--test-fraction", "0.5"])
    rows = open_prepared(tmp_path / "out").provenance["rows"]
    assert rows["test"] == 509 - 254


def test_an_existing_directory_is_refused_before_anything_is_read(
    prepared: Path, tmp_path: Path, capsys: Shown
) -> None:
    shown = refusal(flags(tmp_path / "nowhere", prepared), capsys)
    assert "exists; choose another directory or pass --overwrite" in shown


def test_errors_are_told_without_a_traceback(raw: Path, tmp_path: Path, capsys: Shown) -> None:
    arguments = flags(raw, tmp_path / "out")
    arguments[arguments.index("stars>2")] = "tab>2"
    shown = refusal([*arguments, "--scenario", "item"], capsys)
    assert "file log.csv, line 2: tab is 't0', not a number" in shown
    assert list(tmp_path.iterdir()) == []


def test_check(prepared: Path, tmp_path: Path, capsys: Shown) -> None:
    main(["check", str(prepared)])
    assert "14 files and 509 rows are as they were written" in said(capsys)
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    ids = np.load(copy / "train/ids.npy")
    ids[3, 0] = 1 if ids[3, 0] != 1 else 2
    np.save(copy / "train/ids.npy", ids)
    assert "train/ids.npy has changed: its SHA-256 is" in refusal(["check", str(copy)], capsys)


def test_describe(prepared: Path, tmp_path: Path, capsys: Shown) -> None:
    main(["describe", str(prepared), "--picture", str(tmp_path / "p.png")])
    shown = said(capsys)
    label = open_prepared(prepared).rows("test").label
    assert f"{len(label):,} │ {label.mean():.4f}" in shown
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_describe_says_by_what_the_rows_divide_and_what_acts_differently_then() -> None:
    found = [
        Division(("device",), 1234.4, {"hour": 0.4, "city": 30.0, "brand": 1204.0}),
        *(Division((f"f{n}", "age"), 100.0, {"city": 100.0}) for n in range(9)),
        Division((), 0.0, {}),
    ]
    grid = division_grid(found)
    assert [tuple(line) for line in grid.lines] == [
        ("device", "1,234", "brand, city"),
        *((f"f{n} and age", "100", "city") for n in range(3)),
        ("the scenarios", "0", "nothing"),
    ]
    assert "--wide auto" not in (grid.caption or "")
    by_time = division_grid(found, at_random=False).caption or ""
    assert by_time.endswith("rows that were not split at random get no terms by --wide auto")


def test_facts_are_those_of_a_plain_count(prepared: Path) -> None:
    opened = open_prepared(prepared)
    for split in ("train", "test"):
        facts = split_facts(opened, split)
        ids, scenario, label = (np.asarray(column) for column in opened.rows(split))
        for s in range(2):
            mine = ids[scenario == s]
            assert facts.rows[s] == len(mine)
            assert facts.clicks[s] == label[scenario == s].sum()
            for f in range(4):
                assert facts.distinct[s, f] == len(set(mine[:, f].tolist()) - {0})
                assert facts.unknown[s, f] == (mine[:, f] == 0).sum()


def test_a_line_break_in_a_path_is_refused(raw: Path, tmp_path: Path, capsys: Shown) -> None:
    shown = refusal(flags(raw, tmp_path / "o\nut"), capsys)
    assert r"/o\nut' holds a line break or another control character, which the engines" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_table_without_rows_is_refused(name: str, tmp_path: Path, capsys: Shown) -> None:
    empty = pa.table({column: pa.array([], pa.string()) for column in ("user", "tab", "click")})
    if name.endswith("csv"):
        (tmp_path / name).write_text("user,tab,click\n")
    else:
        pq.write_table(empty, tmp_path / name)
    files = [str(tmp_path / name), str(tmp_path / "out")]
    for scenario in ("tab", "tab=3"):
        arguments = ["prepare", "table", *files, "--label", "click", "--scenario", scenario]
        assert f"file {name} has no rows, only columns" in refusal(arguments, capsys)


def test_a_scenario_called_overall_is_refused(tmp_path: Path, capsys: Shown) -> None:
    rows = "\n".join(f"u{n % 9},{('home', 'Overall')[n % 2]},{n % 3 // 2}" for n in range(90))
    (tmp_path / "log.csv").write_text(f"user,tab,click\n{rows}")
    files = [str(tmp_path / "log.csv"), str(tmp_path / "out")]
    shown = refusal(["prepare", "table", *files, "--label", "click", "--scenario", "tab"], capsys)
    assert "a scenario is called 'Overall', which can't be told from all rows together" in shown


def test_tables_of_many_scenarios_with_hostile_names_fit_a_screen(
    tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*HOSTILE[:-1], *(f"{'tab' * 20}{n}" for n in range(9))]
    with (tmp_path / "log.csv").open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(["user", "tab", "click"])
        for number in range(60 * len(names)):
            write([f"u{number % 31}", names[number % len(names)], int(number % 7 < 2)])
    monkeypatch.setenv("COLUMNS", "80")
    files = [str(tmp_path / "log.csv"), str(tmp_path / "out[/b]")]
    main(["prepare", "table", *files, "--label", "click", "--scenario", "tab", "--user", "user"])
    prepared = capsys.readouterr().out + capsys.readouterr().err
    main(["describe", files[1]])
    described = capsys.readouterr().out
    rows = open_prepared(tmp_path / "out[/b]").rows("train").scenario
    for text in (prepared, described):
        lines = [line for line in text.splitlines() if "│" in line]
        assert all(cell_len(line) <= 80 for line in lines)
    table = [line for line in described.splitlines() if line.count("│") == 8]
    assert [int(line.split("│")[2].replace(",", "")) for line in table[: len(names)]] == (
        np.bincount(rows).tolist()
    )
    for name in HOSTILE[:-1]:
        assert visible(name)[:3] in described
