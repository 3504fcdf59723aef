"""Orbax as checkpoints use it: any path it is given is literal, and it keeps quiet."""

import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d3jax.errors import CheckpointError
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.checkpoint.storage import LiteralPath
from d3jax.training.sharding import make_mesh, replicate

NAMES = st.text(
    st.characters(exclude_characters="/\\\0", codec="utf-8"), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and not name.endswith("gs:"))

SPECIAL = (
    "[1]/a[b-c]/]x[/*/a?b/{x}/50%/%2F/#1?a=b/ a b /'q'/\"q\"/-x/~/$HOME/é中/a:b/s3:/label=1/a|b"
)
"""Folders in folders, each with a name that means something somewhere."""


@settings(max_examples=8, deadline=None, derandomize=True)
@given(name=NAMES)
@example(name=SPECIAL)
def test_whatever_the_folder_is_called_what_is_saved_comes_back(tmp_path_factory, name):
    directory = tmp_path_factory.mktemp("named") / name
    state = replicate(make_mesh(), {"kernel": jnp.arange(6.0), "step": jnp.int32(7)})
    checkpoints = Checkpoints(directory, {})
    checkpoints.save(1, state, {})
    checkpoints.close()
    checkpoints = Checkpoints(directory, {}, writer=False)
    restored = checkpoints.restore(state)
    checkpoints.close()
    assert np.array_equal(restored.state["kernel"], np.arange(6.0))


@settings(max_examples=200, deadline=None)
@given(name=NAMES)
@example(name="a[b]")
@example(name="*")
def test_a_folder_is_looked_through_and_no_other(tmp_path_factory, name):
    parent = tmp_path_factory.mktemp("parent")
    for folder in {name, "ab", "b", "*"}:
        (parent / folder).mkdir()
        (parent / folder / "file-1").touch()
    found = list(LiteralPath(parent / name).glob("file-*"))
    assert found == [LiteralPath(parent / name / "file-1")]
    assert {type(path) for path in found} == {LiteralPath}


def test_a_folder_at_the_root_is_no_bucket():
    assert os.fspath(LiteralPath("/s3/run")) == "/s3/run"


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("back\\slash", "has a backslash in it"),
        ("logs:gs:", "has a folder whose name ends in gs:, which stands for a bucket"),
        (os.fsdecode(b"caf\xe9"), "is no UTF-8 text"),
    ],
)
def test_a_path_that_arrays_can_not_be_written_to_is_refused(tmp_path, name, flaw):
    message = rf"^checkpoints can't be kept in '.*': it {flaw}; choose another run directory$"
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / name / "checkpoints", {})


CHILD = """
import resource, sys, numpy as np
from pathlib import Path
from d3jax.errors import CheckpointError
from d3jax.training.checkpoint.checkpoints import Checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
checkpoints = Checkpoints(Path(sys.argv[1]), {})
checkpoints.save(1, {"kernel": np.random.default_rng(0).normal(size=(500, 500))}, {})
try:
    checkpoints.wait()
except CheckpointError as error:
    print(error)
"""


def test_orbax_says_nothing_beside_the_error(tmp_path):
    """In a process of its own, whose logging no test has set up."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"writing a checkpoint to .*File too large.*: \[\]\..*\n", done.stdout)
    assert done.stderr == ""
