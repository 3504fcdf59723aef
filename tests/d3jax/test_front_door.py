"""`import d3jax` gives what its stub says, at once, and nothing of the rooms above it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import d3jax

PACKAGE = Path(d3jax.__file__).parent

MYPY = """[mypy]
ignore_missing_imports = true
follow_imports = silent
[mypy-jax.*,flax.*,numpy.*,optax.*,pyarrow.*,grain.*,jaxtyping.*,rich.*,tyro.*,matplotlib.*]
follow_imports = skip
"""
"""What takes long to read is left out."""


def run_python(script: str, folder: Path) -> str:
    """What a script, given to another Python in a folder, says on standard output."""
    environment = os.environ | {
        "PYTHONPATH": str(PACKAGE.parent),
        "MYPYPATH": str(PACKAGE.parent),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stub_names() -> set[str]:
    """The names that a type checker finds in the package."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    # `X as X` is how a stub passes a name on (PEP 484).
    assert all(alias.name == alias.asname for alias in aliases)
    annotated = [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return {alias.name for alias in aliases} | {name.id for name in annotated}  # type: ignore[union-attr]


def test_every_name_is_there_and_in_the_stub() -> None:
    assert set(d3jax.__all__) == stub_names() == set(dir(d3jax))
    for name in d3jax.__all__:
        assert getattr(d3jax, name) is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"^module 'd3jax' has no attribute 'fitt'$"):
        d3jax.fitt  # noqa: B018


def test_no_submodule_takes_the_place_of_a_name() -> None:
    """Importing `d3jax.train`, were there such a module, would replace the function `train`."""
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    given = {name for name in d3jax.__all__ if getattr(d3jax, name).__class__.__name__ == "module"}
    assert modules & set(d3jax.__all__) == given == {"nnx"}


def test_importing_costs_neither_jax_nor_much_else(tmp_path: Path) -> None:
    script = (
        "import sys, d3jax; d3jax.__version__; d3jax.DataError\n"
        "print(*sorted({'jax', 'flax', 'numpy', 'pyarrow', 'rich', 'tyro'} & set(sys.modules)))"
    )
    assert run_python(script, tmp_path).strip() == ""


def test_typed_files_are_installed() -> None:
    """A type checker reads the package's types for the marker alone (PEP 561)."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["d3jax"]
    installed = {path.name for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert installed == {"py.typed", "__init__.pyi"}


@pytest.mark.slow
def test_a_users_type_checker_sees_types(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import d3jax\n"
        "reveal_type(d3jax.open_prepared)\n"
        "reveal_type(d3jax.open_prepared('ml').schema.num_fields)\n"
        "d3jax.open_prepared(3)\n"
        "d3jax.fitt\n"
    )
    (tmp_path / "mypy.ini").write_text(MYPY)
    check = "import sys; from mypy import api; sys.stdout.write(api.run(['script.py'])[0])"
    told = run_python(check, tmp_path)
    assert 'script.py:2: note: Revealed type is "def (directory: pathlib.Path | str)' in told
    assert 'script.py:3: note: Revealed type is "int"' in told
    assert 'script.py:4: error: Argument 1 to "open_prepared" has incompatible type "int"' in told
    assert 'script.py:5: error: Module has no attribute "fitt"' in told
