"""Fingerprints of arrays, by which a checkpoint is known to hold what was written.

Sums modulo 2^32 come out the same in any order, so an array has one fingerprint on 1, 2 or 8
devices, replicated or sharded, and computing it moves no array between devices. Large ones are
read where they live; small ones on the host, for compiling costs more than reading them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

SEEDS = (0x9E3779B9, 0x7F4A7C15)
"""One of each of the two sums."""

SMALL = 1 << 18
"""Elements up to which an array is read on the host."""

Words = UInt32[Array, "..."] | UInt32[np.ndarray, "..."]
_CHUNK = 1 << 22
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


class Fingerprint(NamedTuple):
    """Type and shape of an array, and 64 bits that depend on each of its own, in hexadecimal."""

    dtype: str
    shape: tuple[int, ...]
    bits: str


def fingerprints(arrays: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """The fingerprint of each array.

    A change of any one 32-bit word is certain to be noticed, for the word's share in each sum is
    a bijection of it; others go unnoticed once in 2^64. An element's place counts modulo 2^32,
    so only an exchange of elements 2^32 apart could hide.
    """
    sums = jax.device_get([_sums(_one_copy(array)) for array in arrays.values()])
    return {
        name: Fingerprint(str(array.dtype), tuple(array.shape), "".join(f"{n:08x}" for n in both))
        for (name, array), both in zip(arrays.items(), sums, strict=True)
    }


def parse_fingerprints(saved: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """From the lists that JSON makes of them."""
    return {
        name: Fingerprint(dtype, tuple(shape), bits) for name, (dtype, shape, bits) in saved.items()
    }


def _one_copy(array: Any) -> Any:
    """Return the first device's copy of what all hold whole, on the host when it is small."""
    if isinstance(array, jax.Array) and array.is_fully_replicated:
        array = array.addressable_data(0)
        return array if array.size > SMALL else np.asarray(array)
    return array


def _sums(array: Any) -> Any:
    """The two sums [2], those of a large array still under way."""
    return _host_sums(array) if isinstance(array, np.ndarray) else _device_sums(array)


def _host_sums(array: np.ndarray) -> UInt32[np.ndarray, "2"]:
    words = np.ascontiguousarray(array).reshape(-1).view(_UNSIGNED[array.dtype.itemsize])
    sums = np.zeros(2, np.uint32)
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32)
        place = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        sums += np.array([mixed.sum(dtype=np.uint32) for mixed in _mixed(part, place)], np.uint32)
    return sums


@jax.jit
def _device_sums(array: Array) -> UInt32[Array, "2"]:
    bits = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    words = lax.bitcast_convert_type(bits, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    place = _places(words.shape)
    return jnp.stack([mixed.sum(dtype=jnp.uint32) for mixed in _mixed(words, place)])


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Each element's number in row-major order, without reshaping what may be sharded."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return place


def _mixed(words: Words, place: Words) -> list[Words]:
    """Each word's share in the two sums: 64-bit elements are two words, the low one first."""
    return [_mix(words ^ _mix(place ^ np.uint32(seed))) for seed in SEEDS]


def _mix(word: Words) -> Words:
    """The finaliser of MurmurHash3 (Appleby, 2011), a bijection of 32-bit words."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))
