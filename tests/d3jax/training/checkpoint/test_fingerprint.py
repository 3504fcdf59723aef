"""Fingerprints: equal to plain integer arithmetic, in every layout, and changed by any bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.training.checkpoint import fingerprint
from d3jax.training.checkpoint.fingerprint import Fingerprint, fingerprints, parse_fingerprints
from d3jax.training.sharding import make_mesh

M32 = 2**32 - 1


def mix(word: int) -> int:
    """MurmurHash3's finaliser in Python's own integers."""
    word = (word ^ word >> 16) * 0x85EBCA6B & M32
    word = (word ^ word >> 13) * 0xC2B2AE35 & M32
    return word ^ word >> 16


def reference(array: np.ndarray) -> str:
    """The 64 bits, word by word."""
    width = min(array.dtype.itemsize, 4)
    data = array.tobytes()
    words = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
    sums = [
        sum(mix(word ^ mix(place ^ seed)) for place, word in enumerate(words)) & M32
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    return "".join(f"{n:08x}" for n in sums)


def drawn(dtype, shape=(16, 5)) -> np.ndarray:
    return (np.random.default_rng(7).normal(size=shape) * 50).astype(dtype)


DTYPES = [np.float32, np.int32, np.uint32, ml_dtypes.bfloat16, np.float16, np.int8, np.bool_]


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch) -> str:
    """Both ways of computing, whatever the size."""
    if request.param == "device":
        monkeypatch.setattr(fingerprint, "SMALL", -1)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_type_is_read_as_its_bits(where, dtype):
    array = drawn(dtype)
    found = fingerprints({"array": jnp.asarray(array)})["array"]
    assert found == Fingerprint(np.dtype(dtype).name, (16, 5), reference(array))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4), (8, 1, 2, 3)])
def test_places_are_counted_in_row_major_order(where, shape):
    array = drawn(np.float32, shape)
    found = fingerprints({"array": jnp.asarray(array)})["array"]
    assert found == Fingerprint("float32", shape, reference(array))


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data")], ids=str)
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_layout_does_not_matter(where, devices, spec):
    array = drawn(np.float32, (16, 24))
    mesh = make_mesh(jax.devices()[:devices])
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    assert fingerprints({"array": placed})["array"].bits == reference(array)


def test_a_sharded_array_is_not_gathered():
    sharded = jax.ShapeDtypeStruct(
        (1024, 8), jnp.float32, sharding=NamedSharding(make_mesh(), P("data"))
    )
    program = fingerprint._device_sums.lower(sharded).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program


def test_numpy_arrays_are_read_in_chunks_to_the_same_sums(monkeypatch):
    monkeypatch.setattr(fingerprint, "_CHUNK", 7)
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        array = drawn(dtype)
        assert fingerprints({"array": array.T})["array"].bits == reference(array.T.copy())


def test_64_bit_types_are_two_words(monkeypatch):
    monkeypatch.setattr(fingerprint, "SMALL", -1)
    with jax.enable_x64(True):
        array = drawn(np.float64)
        found = fingerprints({"array": jnp.asarray(array)})["array"]
    assert found == Fingerprint("float64", (16, 5), reference(array))


def test_any_bit_changes_both_sums(where):
    array = drawn(np.float32, (4, 2))
    before = fingerprints({"array": jnp.asarray(array)})["array"].bits
    for bit in range(8 * array.nbytes):
        data = bytearray(array.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(data), np.float32).reshape(4, 2)
        after = fingerprints({"array": jnp.asarray(changed)})["array"].bits
        assert after[:8] != before[:8]
        assert after[8:] != before[8:]


def test_exchanged_elements_and_signed_zeros_are_seen(where):
    zero = jnp.zeros((3,))
    assert fingerprints({"a": zero}) != fingerprints({"a": -zero})
    assert fingerprints({"a": jnp.arange(3)}) != fingerprints({"a": jnp.array([1, 0, 2])})


def test_each_name_has_its_own():
    arrays = {name: jnp.full((2,), value) for value, name in enumerate("zay")}
    found = fingerprints(arrays)
    assert list(found) == ["z", "a", "y"]
    for name, array in arrays.items():
        assert found[name].bits == reference(np.asarray(array))


def test_they_come_back_from_json():
    found = fingerprints({"a": jnp.ones((2, 3)), "b": jnp.int32(1)})
    assert parse_fingerprints({name: [d, list(s), b] for name, (d, s, b) in found.items()}) == found
