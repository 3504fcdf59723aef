"""The account of a run at its end: when it stopped and why, and what D3 did in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from d3jax.config import Config, TrainConfig
from d3jax.console.terminal import Console, styled
from d3jax.evaluate import Evaluated
from d3jax.parts import balance_of, balance_start
from d3jax.training.loop import Progress, out_of_patience, total_steps
from d3jax.training.metrics import Evaluation

EVEN = 0.01
"""An attention that is nearer to even than this, as a share of ln N, selects nothing."""


class Remark(NamedTuple):
    """A sentence on a run, and whether it is a warning."""

    text: str
    warns: bool = False


def account(
    config: TrainConfig,
    weighed: int | None,
    steps_per_epoch: int,
    progress: Progress,
    result: Evaluated,
    fields: Sequence[str],
) -> list[Remark]:
    """Return a run's account in sentences, each of which fits on a line or two.

    `weighed` is the first step whose rows D3 weighs, None for a model that doesn't, or of which
    that isn't known.
    """
    return [
        Remark(_ending(config, steps_per_epoch, progress)),
        *map(Remark, _attention(result.attention, fields)),
        *map(Remark, _gate(result.metrics)),
        *_weighing(weighed, progress),
        *_no_better(result.metrics),
    ]


def weighed_from(config: Config, steps: int) -> int | None:
    """Return the first of at most `steps` steps whose rows D3 weighs; None for other models."""
    return None if balance_of(config) is None else balance_start(config, steps) + 1


def weighing_plan(weighed: int, steps: int, steps_per_epoch: int) -> str:
    """Return in words from when on D3 weighs rows, if nothing stops the run before."""
    epoch = _epoch(weighed, steps_per_epoch)
    return f"rows are weighed from step {weighed:,} of at most {steps:,} on{epoch}"


def evenness(attention: Float[np.ndarray, "S N"]) -> float:
    """Return how far scenarios' mean attention is from even, in [0, 1]: 1 - H / ln N, of the mean
    of their entropies H."""
    known = attention[np.isfinite(attention).all(-1)]
    terms = np.where(known > 0, known * np.log(np.where(known > 0, known, 1.0)), 0.0)
    return max(0.0, float(1 + terms.sum(-1).mean() / math.log(attention.shape[1])))


def _ending(config: TrainConfig, steps_per_epoch: int, progress: Progress) -> str:
    steps = total_steps(config, steps_per_epoch)
    told = f"trained {progress.step:,} of at most {steps:,} steps"
    if out_of_patience(config, progress) and progress.step < steps:
        times = "evaluation" if progress.stale == 1 else "evaluations in a row"
        told += f": {progress.stale} {times} brought no better {config.monitor}"
    if progress.best_step is not None:
        best = progress.best_step
        told += f"; the best weights are of step {best:,}{_epoch(best, steps_per_epoch)}"
    return told


def _epoch(step: int, steps_per_epoch: int) -> str:
    return f" (epoch {-(-step // steps_per_epoch)})"


def _attention(attention: np.ndarray | None, fields: Sequence[str]) -> Iterator[str]:
    if attention is None or attention.shape[1] < 2:
        return
    far, received = evenness(attention), np.nanmean(attention, axis=0)
    most = int(received.argmax())
    if far < EVEN:
        yield (
            f"attention is even: {far:.2g} from it, where 1 is a single field; it selects nothing"
        )
    else:
        yield (
            f"attention is {far:.2f} from even, where 1 is a single field; most of it, "
            f"{received[most]:.0%}, goes to {fields[most]}"
        )


def _gate(metrics: Evaluation) -> Iterator[str]:
    if metrics.overall.gate is not None:
        shares = {
            name: group.gate for name, group in metrics.scenarios.items() if group.gate is not None
        }
        least, most = (pick(shares, key=shares.__getitem__) for pick in (min, max))
        yield (
            f"the gate gives a row's own weights {metrics.overall.gate:.2f} on average, from "
            f"{shares[least]:.2f} in {least} to {shares[most]:.2f} in {most}"
        )


def _weighing(weighed: int | None, progress: Progress) -> Iterator[Remark]:
    if weighed is None:
        return
    if progress.step < weighed:
        yield Remark(
            f"rows were never weighed: that was to start at step {weighed:,}; a smaller "
            "--start-ratio or more --patience reaches it",
            warns=True,
        )
    elif progress.best_step is not None and progress.best_step < weighed:
        yield Remark(
            f"the best weights are older than the weighing of rows, from step {weighed:,} on, "
            "which has no part in them",
            warns=True,
        )
    else:
        yield Remark(f"rows were weighed from step {weighed:,} on")


def _no_better(metrics: Evaluation) -> Iterator[Remark]:
    """Name the groups that a constant would serve as well."""
    losing = [
        name
        for name, group in metrics.groups.items()
        if group.logloss is not None
        and group.constant_logloss is not None
        and group.logloss >= group.constant_logloss
    ]
    if losing:
        yield Remark(
            f"no better than answering with its own click rate: {', '.join(losing)} (logloss)",
            warns=True,
        )


def tell_account(remarks: Sequence[Remark], console: Console) -> None:
    """Print the remarks, the warnings among them as such."""
    for remark in remarks:
        console.print(*([styled("warning:", "yellow")] if remark.warns else []), remark.text)
