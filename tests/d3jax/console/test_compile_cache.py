from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from d3jax.cli import main
from d3jax.console.compile_cache import cache_directory, use_compile_cache
from tests.flags import SMALL_PLAIN


def test_programs_are_kept_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/d3jax/programs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/.cache/d3jax/programs")


def test_what_the_user_set_for_jax_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES")
    use_compile_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] == "-1"


@pytest.mark.slow
def test_a_run_keeps_its_programs(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from d3jax.cli import main; main()", "train"]
    flags = ["--epochs", "1", "--batch-size", "2048", "--backbone", "plain", "--head", "own"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX", "XLA"))
    }
    subprocess.run(
        [*command, str(prepared), "--out", str(tmp_path / "run"), *flags, *SMALL_PLAIN],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert any((tmp_path / "d3jax" / "programs").iterdir())


@pytest.mark.parametrize(("flag", "kept"), [([], True), (["--no-compile-cache"], False)])
def test_no_program_is_kept_when_told_not_to(
    flag: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("d3jax.cli.use_compile_cache", lambda: calls.append(True))
    with pytest.raises(SystemExit):
        main(["train", "nowhere", *flag])
    assert bool(calls) == kept


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_directory() is None
    use_compile_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory() == Path("/caches/d3jax/programs")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() is None
