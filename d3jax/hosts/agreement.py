"""The processes of one run tell each other bytes on the host; alone, a process hears itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Shaped, UInt32

from d3jax.config import differences
from d3jax.errors import ConfigError, D3jaxError, TrainingError

Column = Shaped[np.ndarray, "..."]
Answer = TypeVar("Answer")


def gather_bytes(mine: bytes) -> list[bytes]:
    """Return the bytes of all processes, in their order; all call it together.

    For a moment every device holds all of it, padded to the longest.
    """
    if jax.process_count() == 1:
        return [mine]
    lengths = _gather_words(np.array([len(mine)], np.uint32))[:, 0]
    words = np.zeros(int(lengths.max()) // 4 + 1, np.uint32)
    words.view(np.uint8)[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = _gather_words(words)
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def _gather_words(mine: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, "P n"]:
    """`multihost_utils.process_allgather`, but done on every device when it returns.

    That waits for one device only; Gloo mixes a collective up with the next if both are under
    way on another.
    """
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
    mesh = Mesh(devices, ("process", "device"))
    spread = jax.make_array_from_process_local_data(NamedSharding(mesh, P("process")), mine[None])
    whole = jax.jit(_same, out_shardings=NamedSharding(mesh, P()))(spread)
    return np.asarray(jax.block_until_ready(whole))


def _same(array: jax.Array) -> jax.Array:
    return array


def gather_arrays(mine: Column) -> list[Column]:
    """The arrays of all processes, which may differ in their first axis alone.

    Bytes travel, for JAX would round 64-bit numbers to 32.
    """
    everyone = gather_bytes(np.ascontiguousarray(mine).tobytes())
    return [np.frombuffer(raw, mine.dtype).reshape(-1, *mine.shape[1:]) for raw in everyone]


def in_first_process(action: Callable[[], Answer]) -> Answer:
    """Does something once, in process 0, and tells the answer, a JSON value, to all.

    What process 0 refuses, no other goes on with: they raise `TrainingError` with its words.
    """
    if jax.process_count() == 1:
        return action()
    told: dict[str, Any] = {}
    refusal: D3jaxError | None = None
    if jax.process_index() == 0:
        try:
            told = {"answer": action()}
        except D3jaxError as error:
            refusal, told = error, {"refused": str(error)}
    told = json.loads(gather_bytes(json.dumps(told).encode())[0])
    if refusal is not None:
        raise refusal
    if "refused" in told:
        raise TrainingError(f"process 0 stopped: {told['refused']}")
    return told["answer"]


def check_agreement(identity: dict[str, Any]) -> None:
    """Raises `ConfigError` in every process when one would run something else than process 0.

    `identity` holds JSON values. Unnoticed, the processes would train on parameters or rows that
    don't belong together, or wait for each other for ever.
    """
    first, *others = map(json.loads, gather_bytes(json.dumps(identity).encode()))
    for process, other in enumerate(others, start=1):
        if changed := differences(first, other):
            raise ConfigError(
                f"process {process} runs something else than process 0 ({'; '.join(changed)}); "
                "give all processes the same flags, data and version of d3jax"
            )
