"""Where a verb writes: any path will do, what others have there stays, a full disk is told."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3jax.cli import main
from d3jax.owned import exclusive
from tests.flags import SMALL, said

QUICK = ["--batch-size", "256", "--epochs", "1", "--patience", "0"]
PLAIN = ["--backbone", "plain", "--head", "own", *("--embedding-dim", "4"), *QUICK]
PLAIN += ["--preset", "text", "--bottom-layers", "8", "6"]
"""Flags of a network that compiles in a moment."""
NAMED = "[1]/a[b-c]/]x[/*/a?b/{x}/50%/%2F/#1?a=b/ a b /'q'/\"q\"/~/$HOME/é中/a:b/y=1/split=test/-x"
"""Folders in folders, each with a name that means something somewhere."""
TABLE = ["--label", "click", "--scenario", "tab", "--user", "user", "--item", "item"]

Capsys = pytest.CaptureFixture[str]


def everything(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def refused(arguments: list[str], capsys: Capsys) -> str:
    """What a command says that ends with exit code 2 and no traceback."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = said(capsys)
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    return told


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A raw table of 600 rows."""
    lines = [f"u{n % 50},i{n % 40},{'ab'[n % 2]},{n % 3 % 2}\n" for n in range(600)]
    path = tmp_path / "clicks.csv"
    path.write_text("user,item,tab,click\n" + "".join(lines))
    return path


@pytest.mark.slow
def test_a_run_may_have_any_path(prepared: Path, tmp_path: Path, capsys: Capsys) -> None:
    run = tmp_path / NAMED
    main(["train", str(prepared), "--out", str(run), *PLAIN])
    main(["train", "--resume", str(run)])
    before = (run / "evaluation.json").read_text()
    capsys.readouterr()
    main(["evaluate", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["overall"] == json.loads(before)["overall"]


@pytest.mark.parametrize("name", ["back\\slash", "gs:/run"])
def test_a_path_that_no_checkpoint_can_have_is_refused_before_anything_is_made(
    prepared: Path, tmp_path: Path, capsys: Capsys, name: str
) -> None:
    told = refused(["train", str(prepared), "--out", str(tmp_path / name), *SMALL], capsys)
    assert "checkpoints can't be kept in" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("files", [["config.json"], ["schema.json", "checksums.json"], [".db"]])
@pytest.mark.parametrize(
    "verb",
    [
        ["train", "PREPARED", "--out", "OUT", "--overwrite"],
        ["train", "PREPARED", "--seeds", "2", "--out", "OUT", "--overwrite"],
        ["prepare", "table", "CLICKS", "OUT", "--overwrite", *TABLE],
        ["export", "RUN", "OUT"],
        ["compare", "PREPARED", "--table", "1", "--out", "OUT"],
        ["inspect", "RUN", "--out", "OUT"],
        ["chaos", "PREPARED", "--out", "OUT"],
        ["search", "PREPARED", "--out", "OUT"],
        ["predict", "RUN", "CLICKS", "--out", "OUT"],
        ["describe", "PREPARED", "--picture", "OUT"],
    ],
    ids=lambda verb: f"{verb[0]}-{len(verb)}",
)
def test_a_folder_of_others_stays_as_it_is(
    prepared: Path,
    trained: Path,
    clicks: Path,
    tmp_path: Path,
    capsys: Capsys,
    verb: list[str],
    files: list[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in files:
        (out / name).write_text("{}")
    before = everything(tmp_path)
    words = {"PREPARED": prepared, "RUN": trained, "CLICKS": clicks, "OUT": out}
    told = refused([str(words.get(word, word)) for word in verb], capsys)
    assert str(out) in told
    assert everything(tmp_path) == before


def test_prepare_replaces_no_run(
    trained: Path, clicks: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = everything(run)
    told = refused(["prepare", "table", str(clicks), str(run), "--overwrite", *TABLE], capsys)
    assert f"{run} is a run, and no prepared directory that d3jax made, so it is not" in told
    assert everything(run) == before


def test_a_run_in_training_is_not_replaced(
    trained: Path, prepared: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    with exclusive(run):
        before = everything(run)
        told = refused(["train", str(prepared), "--out", str(run), "--overwrite", *SMALL], capsys)
        assert everything(run) == before
    assert "is training" in told
    assert "wait for it, or stop it" in told


def test_train_makes_no_data_over_that_of_others(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "exp-data").mkdir()
    (tmp_path / "exp-data" / "schema.json").write_text("precious")
    told = refused(["train", "--out", str(tmp_path / "exp")], capsys)
    assert f"{tmp_path / 'exp-data'} is no made-up data of d3jax train that d3jax made" in told
    assert everything(tmp_path) == {"exp-data/schema.json": b"precious"}


def test_export_leaves_a_neighbour_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "thesis.tex").write_text("precious")
    main(["export", str(trained), str(tmp_path / "model")])
    assert (tmp_path / "model.tmp" / "thesis.tex").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tmp"]


def test_predictions_do_not_replace_their_rows(
    trained: Path, clicks: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "link.csv").symlink_to(clicks)
    before = clicks.read_bytes()
    out = ["--out", str(tmp_path / "link.csv")]
    told = refused(["predict", str(trained), str(clicks), *out], capsys)
    assert "is the same file as" in told
    assert clicks.read_bytes() == before


@pytest.fixture
def full() -> Iterator[None]:
    """No file may grow beyond 200 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "verb",
    [
        ["train", "PREPARED", "--out", "OUT", *QUICK, *SMALL],
        ["train", "--out", "OUT", *QUICK, *SMALL],
        ["train", "PREPARED", "--seeds", "2", "--out", "OUT", *QUICK, *SMALL],
        ["prepare", "table", "CLICKS", "OUT", *TABLE],
        ["export", "RUN", "OUT"],
        ["inspect", "RUN", "--out", "OUT"],
        ["describe", "PREPARED", "--picture", "OUT.png"],
        ["search", "PREPARED", "--out", "OUT.json", "--embedding-dim", "4", "--head", "own"],
        [
            "compare",
            "PREPARED",
            "--table",
            "1",
            "--out",
            "OUT",
            "--seeds",
            "1",
            *QUICK,
            *SMALL,
        ],
        ["chaos", "PREPARED", "--out", "OUT", *QUICK, *SMALL],
    ],
    ids=lambda verb: f"{verb[0]}-{len(verb)}",
)
def test_a_full_disk_is_told_and_leaves_nothing_in_the_way(
    prepared: Path,
    trained: Path,
    clicks: Path,
    tmp_path: Path,
    capsys: Capsys,
    full: None,
    verb: list[str],
) -> None:
    words = {"PREPARED": prepared, "RUN": trained, "CLICKS": clicks}
    words |= {f"OUT{kind}": tmp_path / f"out{kind}" for kind in ("", ".png", ".json")}
    told = refused([str(words.get(word, word)) for word in verb], capsys)
    # SQLite tells of any trouble in the same words.
    message = "can't write" if verb[0] == "search" else "no space is left on the disk of"
    assert f"{message} {tmp_path}/out" in told
    # What is there is what the same command goes on with.
    kept = {"inspect": {"out"}, "compare": {"out"}}.get(verb[0], set())
    assert {path.name for path in tmp_path.iterdir()} - {clicks.name} == kept


@pytest.mark.slow
def test_a_run_that_met_a_full_disk_goes_on(prepared: Path, tmp_path: Path, capsys: Capsys) -> None:
    run = tmp_path / "run"
    # The programs are compiled and kept before the disk is full: a kept one is a file as well.
    main(["train", str(prepared), "--out", str(tmp_path / "other"), *PLAIN])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        told = refused(["train", str(prepared), "--out", str(run), *PLAIN], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in told
    assert "those on disk are whole: []. Free some space or make the place writable, then" in told
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "tr\n\xff\xfe\n[]\n{"step": "x"}\n')
    main(["train", "--resume", str(run)])
    assert "4 broken lines of" in said(capsys)
    assert (run / "evaluation.json").is_file()
