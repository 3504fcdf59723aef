"""What d3jax didn't make stays as it is, whatever is asked for; what it makes is never half."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.errors import OutputError
from d3jax.owned import (
    CONTENTS,
    KINDS,
    MARKER,
    building,
    check_free,
    check_output,
    claim,
    exclusive,
    kind_of,
    replacing,
)


def everything(directory: Path) -> dict[str, bytes]:
    """All files by their relative paths."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def contents(directory: Path) -> dict[str, bytes]:
    """All files but the markers."""
    return {name: text for name, text in everything(directory).items() if MARKER not in name}


@pytest.fixture(autouse=True, scope="module")
def texts() -> Iterator[None]:
    """The directories of these tests hold a text."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, names in CONTENTS.items():
            patch.setitem(CONTENTS, kind, {*names, "text"})
        yield


def build(
    directory: Path,
    text: str,
    overwrite: bool = False,
    error: BaseException | None = None,
    kind: str = "prepared",
) -> None:
    with building(directory, kind, overwrite) as new:
        (new / "text").write_text(text)
        if error is not None:
            raise error


def test_building_makes_the_directory_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path / "deep" / "out", "one")
    assert contents(tmp_path) == {"deep/out/text": b"one"}
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "out"]
    assert kind_of(tmp_path / "deep" / "out") == "prepared"


def test_building_is_unseen_until_it_succeeds(tmp_path: Path) -> None:
    with building(tmp_path / "out", "run") as new:
        assert not (tmp_path / "out").exists()
        assert kind_of(new) == "run"
    assert kind_of(tmp_path / "out") == "run"


def test_building_replaces_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, "one")
    with pytest.raises(OutputError, match=r"^.*out exists; choose another directory or pass --ove"):
        build(out, "two")
    assert contents(tmp_path) == {"out/text": b"one"}
    build(out, "two", overwrite=True)
    assert contents(tmp_path) == {"out/text": b"two"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_building_that_fails_changes_nothing(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    out = tmp_path / "out"
    if existing:
        build(out, "one")
    before = contents(tmp_path)
    with pytest.raises(error):
        build(out, "half", overwrite=True, error=error())
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [out] * existing


def test_building_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    build(out, "one")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OutputError, match=r"can't write .*out \(Permission denied\)"):
        build(out, "two", overwrite=True)
    assert contents(tmp_path) == {"out/text": b"one"}


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def intrude() -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("precious")

    with (
        pytest.raises(OutputError, match="out exists; choose"),
        building(tmp_path / "out", "run"),
    ):
        intrude()
    assert contents(tmp_path) == {"out/theirs": b"precious"}


NAMES = st.sampled_from(
    ["schema.json", "config.json", "checksums.json", "checkpoints/1/x", "notes", MARKER, "lock"]
)
BYTES = st.binary(max_size=8) | st.sampled_from([b"run", b"prepared", b"x\n"])
"""A file of the marker's name may be the user's, but with these words in it it would be ours."""


@given(
    files=st.dictionaries(NAMES, BYTES.filter(lambda b: b.strip().decode("latin") not in KINDS)),
    kind=st.sampled_from(sorted(KINDS)),
    overwrite=st.booleans(),
)
def test_whatever_is_not_marked_is_not_touched(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    kind: str,
    overwrite: bool,
) -> None:
    parent = tmp_path_factory.mktemp("theirs")
    for name, content in {**files, "one": b"more"}.items():
        (parent / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / "out" / name).write_bytes(content)
    before = everything(parent)
    with pytest.raises(OutputError, match=r"exists; |that d3jax made, so it is not replaced"):
        build(parent / "out", "ours", overwrite, kind=kind)
    with pytest.raises(OutputError, match=r"exists; it is not .*, so choose another --out"):
        claim(parent / "out", kind)
    assert everything(parent) == before


@pytest.mark.parametrize("found", KINDS)
@pytest.mark.parametrize("made", KINDS)
def test_a_kind_replaces_its_like_and_no_other(tmp_path: Path, found: str, made: str) -> None:
    build(tmp_path / "out", "old", kind=found)
    if found == made:
        build(tmp_path / "out", "new", overwrite=True, kind=made)
        assert contents(tmp_path) == {"out/text": b"new"}
    else:
        named = KINDS[found].replace("(", r"\(")
        with pytest.raises(OutputError, match=f"out is {named}, and no .*not replaced; choose"):
            build(tmp_path / "out", "new", overwrite=True, kind=made)
        assert contents(tmp_path) == {"out/text": b"old"}


@pytest.mark.parametrize("kind", ["run", "seeds", "prepared", "synthetic", "export"])
@pytest.mark.parametrize("foreign", ["mine/notes.txt", ".notes", "sub/.d3jax"])
def test_what_holds_something_of_somebodys_is_not_replaced(
    tmp_path: Path, kind: str, foreign: str
) -> None:
    build(tmp_path / "out", "old", kind=kind)
    path = tmp_path / "out" / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    name = foreign.partition("/")[0]
    message = f"out holds {name}, which d3jax didn't put there, so it is not replaced; move that"
    with pytest.raises(OutputError, match=message):
        build(tmp_path / "out", "new", overwrite=True, kind=kind)
    assert path.read_text() == "precious"


def test_a_file_a_link_and_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match=f"{name} is no run that d3jax made"):
            check_free(tmp_path / name, ("run",), overwrite=True)
    (tmp_path / "empty").mkdir()
    build(tmp_path / "empty", "one", kind="run")
    assert contents(tmp_path / "empty") == {"text": b"one"}


def test_what_is_in_use_or_holds_an_input_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, "one", kind="run")
    held = rf"^process {os.getpid()} is training {out} already; wait for it, or stop it$"
    with exclusive(out), pytest.raises(OutputError, match=held):
        build(out, "two", overwrite=True, kind="run")
    with pytest.raises(OutputError, match=r"out holds .*out/raw.csv, so it is not replaced"):
        check_free(out, ("run",), True, inputs=[out / "raw.csv"])
    assert contents(out)["text"] == b"one"
    build(out, "two", overwrite=True, kind="run")
    assert contents(out) == {"text": b"two"}


def test_a_lock_on_what_was_replaced_is_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, "one", kind="run")
    flock = fcntl.flock

    def slow(file: int, how: int) -> None:
        flock(file, how)
        out.rename(tmp_path / "away")
        out.mkdir()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", slow)
        with pytest.raises(OutputError, match="out was replaced by another process"):
            exclusive(out).__enter__()


def test_a_claimed_folder_is_added_to(tmp_path: Path) -> None:
    for _ in range(2):
        claim(tmp_path / "deep" / "out", "comparison")
    (tmp_path / "deep" / "out" / "report").write_text("x")
    claim(tmp_path / "deep" / "out", "comparison")
    with pytest.raises(OutputError, match="out exists; it is not a folder of d3jax inspect, so"):
        claim(tmp_path / "deep" / "out", "pictures")


@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink", "dotted", "folder"])
def test_an_output_is_none_of_its_inputs(tmp_path: Path, how: str) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("precious")
    out = tmp_path / "out.csv"
    if how == "symlink":
        out.symlink_to(source)
    elif how == "hardlink":
        out.hardlink_to(source)
    elif how == "itself":
        out = source
    elif how == "dotted":
        out = tmp_path / "deep" / ".." / "rows.csv"
        (tmp_path / "deep").mkdir()
    else:
        (tmp_path / "linked").symlink_to(tmp_path)
        out = tmp_path / "linked" / "rows.csv"
    with pytest.raises(OutputError, match=r"is the same file as .*rows.csv, which is read"):
        check_output(out, inputs=[tmp_path / "other.csv", source])
    check_output(tmp_path / "new.csv", inputs=[source])


def test_an_output_is_ours_or_new(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a directory; name a file"):
        check_output(tmp_path)
    (tmp_path / "file").write_text("theirs")
    check_output(tmp_path / "file")
    check_output(tmp_path / "file", ours=lambda path: path.read_text() == "theirs")
    with pytest.raises(OutputError, match="file exists and was not written by d3jax, so it is not"):
        check_output(tmp_path / "file", ours=lambda path: False)
    check_output(tmp_path / "none", ours=lambda path: False)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as draft:
        draft.write_text("one")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), replacing(path) as draft, draft.open("w") as file:
        file.write("half" + "\udcff" * 100_000)
    assert contents(tmp_path) == {"deep/file.txt": b"one"}
    (tmp_path / "link").symlink_to(path)
    with replacing(tmp_path / "link") as draft:
        draft.write_text("two")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path) == {"deep/file.txt": b"two", "link": b"two"}


def test_a_device_is_written_not_replaced() -> None:
    with replacing(Path(os.devnull)) as draft:
        assert draft == Path(os.devnull)
    with pytest.raises(OSError, match="No space left"), replacing(Path("/dev/full")) as draft:
        draft.write_text("anything")
    assert Path(os.devnull).is_char_device()
