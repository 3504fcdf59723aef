"""Seal, fingerprints and Orbax' refusal tell a damaged checkpoint from a whole one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d3jax.errors import CheckpointError
from d3jax.training.checkpoint.fingerprint import Fingerprint

_DESCRIPTIONS = "state/_METADATA or state/array_metadatas"


class DamagedError(CheckpointError):
    """A checkpoint that isn't as it was written; `flaw` says in what."""

    def __init__(self, step: int, directory: Path, flaw: str) -> None:
        super().__init__(
            f"checkpoint {step} in {directory} is damaged: {flaw}; put its folder back from a "
            "copy, or delete it to go on from an older one"
        )
        self.flaw = flaw


def sealed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with a SHA-256 of itself, by which a change in it is noticed."""
    return {**metadata, "digest": _digest(metadata)}


def unsealed(metadata: Any) -> bool:
    """Return whether this is the metadata of a version that didn't write fingerprints yet."""
    written = metadata.keys() if isinstance(metadata, dict) else set()
    return "identity" in written and not {"digest", "fingerprints"} & written


def metadata_flaw(metadata: Any) -> str | None:
    """Return what is wrong with sealed metadata that was read; None when all is well."""
    if not metadata or not isinstance(metadata, dict):
        return "_CHECKPOINT_METADATA is missing or unreadable, or it was not written by d3jax"
    rest = {name: value for name, value in metadata.items() if name != "digest"}
    if metadata.get("digest") != _digest(rest):
        return "_CHECKPOINT_METADATA has changed since it was written"
    return None


def array_flaw(ours: Mapping[str, Fingerprint], theirs: Mapping[str, Fingerprint]) -> str | None:
    """Names the arrays whose fingerprints differ from those that were saved; None if none do."""
    changed = [name for name, fingerprint in theirs.items() if ours[name] != fingerprint]
    if not changed:
        return None
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"array {changed[0]}{more} has other numbers than were written"


def reading_flaw(error: Exception, folder: Path) -> str:
    """The root of what Orbax raised, on one line, with paths relative to the step's folder."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = " ".join(f"{type(root).__name__}: {root}".split()).rstrip(".")
    said = said.partition(" [tensorstore_spec")[0]
    if str(folder) in said:
        said = said.replace(f"{folder}/", "")
        return said[said.rfind("driver: ") + len("driver: ") :] if "driver: " in said else said
    # Orbax names no file when one that describes the arrays can be opened but not understood.
    parsing = isinstance(root, (KeyError, ValueError, TypeError, AttributeError))
    return f"{_DESCRIPTIONS} can't be understood ({said})" if parsing else said


def _digest(metadata: Mapping[str, Any]) -> str:
    canonical = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
