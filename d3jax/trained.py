"""The door's own functions: train a run, open one, and all that a trained run can be asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from d3jax.account import tell_account
from d3jax.batch import Batch
from d3jax.checks import as_path
from d3jax.config import Config
from d3jax.configure import DEFAULT, configure
from d3jax.console.log import voice
from d3jax.console.report import evaluation_table, trust_table
from d3jax.console.terminal import as_text
from d3jax.data.format import Format
from d3jax.data.prepared import Prepared, open_prepared
from d3jax.errors import CheckpointError
from d3jax.evaluate import EXPORTED, Loaded, evaluate_split, load_best
from d3jax.export import PROGRAM, Exported, export_run
from d3jax.predictor import Predictor, no_rows
from d3jax.rows import PLAIN
from d3jax.run import Run, open_run
from d3jax.running import begin, interrupting
from d3jax.running import train as train_run
from d3jax.training.metrics import Evaluation, probabilities
from d3jax.training.trainer import Trainer
from d3jax.unknown import Unknown, unknown_in


@dataclass(frozen=True)
class RunEvaluation(Evaluation):
    """The metrics of a run on the rows of a split; printed, they are a table."""

    title: str
    unknown: Unknown
    """The number of those rows with values that training didn't see."""
    best: Evaluation | None
    """The metrics of the true click probabilities, where the data are made up."""

    def __str__(self) -> str:
        return as_text(evaluation_table(self.title, self, self.best), trust_table(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show a notebook the table."""
        printer.text(str(self))


class InspectedRows(NamedTuple):
    """B rows as the model sees them; None for what it doesn't have.

    `attention` is what each field receives, and sums to 1; `gate` the shares of the row's own
    weights and of the shared ones; `weight` what the row's loss would count, once D3 weighs rows,
    among those of its batch of up to 1,024.
    """

    scenario: np.ndarray
    probability: Float[np.ndarray, " B"]
    logits: Float[np.ndarray, " B"]
    attention: Float[np.ndarray, "B N"] | None
    gate: Float[np.ndarray, "B 2"] | None
    weight: Float[np.ndarray, " B"] | None


class TrainedRun(Run, Predictor):
    """A run directory with its best weights, which are loaded when they are first asked for."""

    own: Trainer | None = None
    """The trainer of a model of one's own (`d3jax.fit`)."""

    def evaluate(
        self, split: str = "test", data: Prepared | Path | str | None = None
    ) -> RunEvaluation:
        """Return the metrics of the best weights on a split of the run's data, or of other data.

        Warns where the run may have been trained on rows of the other data. Raises `DataError`
        for a split there isn't, data that have moved or changed, and data encoded in another way.
        """
        place = data.directory if isinstance(data, Prepared) else data
        prepared = self.prepared(None if place is None else Path(place))
        if doubt := self.doubt(prepared):
            warnings.warn(doubt, stacklevel=2)
        loaded = self.best
        size = self.config.train.batch_size
        result = evaluate_split(loaded.trainer, loaded.state, prepared, split, size)
        return RunEvaluation(
            **vars(result.metrics),
            title=f"{self.directory}: {split} rows, best weights",
            unknown=unknown_in(prepared, split, self.described),
            best=result.best,
        )

    def inspect_rows(self, rows: Any, form: Format = PLAIN) -> InspectedRows:
        """Return what attention, gate and loss weight are for each of some rows, in order.

        `rows` are those that `predict` takes; raises what that raises.
        """
        pairs = list(self.best.score(self._batches(rows, form)))
        self._watch.warn()
        if not pairs:
            raise no_rows(rows)
        scenario = np.concatenate([batch.scenario for batch, _ in pairs])
        scored = jax.tree.map(lambda *parts: np.concatenate(parts), *(each for _, each in pairs))
        return InspectedRows(
            scenario=np.array(self.schema.scenarios)[scenario],
            probability=probabilities(scored.logits),
            **scored._asdict(),
        )

    def export(self, folder: Path | str) -> Path:
        """Write the best weights as a program that needs neither the run nor the model's code.

        Returns the folder, which `d3jax.load` reads. Raises `OutputError` when it exists.
        """
        folder = as_path("folder", folder, "the folder to make")
        export_run(self, folder, self.best)
        return folder

    @cached_property
    def best(self) -> Loaded:
        """The trainer and the best weights."""
        return load_best(self, voice(), self.own)

    @property
    def _devices(self) -> int:
        return self.best.trainer.mesh.size

    def _probabilities(
        self, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Float[np.ndarray, " R"]]]:
        for batch, scored in self.best.score(batches):
            yield batch, probabilities(np.asarray(scored.logits))

    def _table(self) -> Float[np.ndarray, "V D"]:
        loaded = self.best
        return np.asarray(loaded.trainer.weights(loaded.state).embedding.table)


def train(
    data: Prepared | Path | str,
    out: Path | str,
    preset: str = DEFAULT,
    config: Config | Path | str | None = None,
    **settings: Any,
) -> TrainedRun:
    """Train a model on prepared data to its end, and return the run in `out`.

    Where `out` is a run of the same settings and data, it goes on from where that stopped; a
    finished one is evaluated again. `settings` change the preset, or the `config` in its place, by
    name: `train(data, "runs/a", epochs=3, backbone="mmoe", seed=1)`. A terminal shows a progress
    bar; elsewhere the logger "d3jax" is told. Ctrl-C saves before it raises `KeyboardInterrupt`.

    Raises `ConfigError` for settings that are unknown, out of range or not read by anything,
    `CheckpointError` with the differences when `out` is another run, `OutputError` when it is no
    run, and `Preempted` when SIGTERM stopped it.
    """
    out = as_path("out", out, "the run's directory")
    chosen = configure(preset, config, **settings)
    prepared = data if isinstance(data, Prepared) else open_prepared(data)
    run = begin(out, chosen, prepared)
    tell_account(train_run(run, prepared, voice(), stopping=interrupting).account, voice())
    return open_trained(run.directory)


def open_trained(directory: Path | str, own: Trainer | None = None) -> TrainedRun:
    """Return the run in a directory; raises `CheckpointError` when there is none."""
    run = TrainedRun(**vars(open_run(Path(directory))))
    vars(run)["own"] = own
    return run


def load(path: Path | str) -> TrainedRun | Exported:
    """Return a run, or an exported model, to `predict` with.

    Raises `CheckpointError` when it is neither, or damaged.
    """
    path = as_path("path", path, "a run's directory or an exported folder")
    if (path / PROGRAM).is_file():
        return Exported(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is neither a run nor an exported model: it holds neither config.json nor "
            f"{PROGRAM}; give the folder that d3jax.train or export made"
        )
    run = open_trained(path)
    return Exported(path / EXPORTED) if run.arrays else run
