"""Pictures of one run: how it learnt, how far it can be believed, and what D3 did inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from d3jax.base import EVALUATION, LossAdapter
from d3jax.batch import Batch
from d3jax.checks import OVERALL
from d3jax.console.report import evaluation_table, number_text, trust_table
from d3jax.console.terminal import Console
from d3jax.data.loader import evaluation_batches, steps_per_epoch
from d3jax.data.prepared import Prepared
from d3jax.disk import writing
from d3jax.evaluate import (
    RESAMPLES,
    Loaded,
    adding_attention,
    load_best,
    mean_attention,
    planted_fields,
    warn_of_doubt,
)
from d3jax.journal import WRITTEN, read_journal
from d3jax.owned import claim
from d3jax.parameters import Tree
from d3jax.parts import balance_start, build_adapter
from d3jax.pictures.charts import (
    Curve,
    balance_curves,
    calibration_curves,
    distributions,
    learning_curves,
    save,
)
from d3jax.pictures.figures import attention_heat_map
from d3jax.run import Run, open_run
from d3jax.training.loop import total_steps
from d3jax.training.metrics import Evaluation, Scores, calibration, evaluate_scores
from d3jax.training.scoring import collect_scores, score_batches

GATE = "gate: share of the row's own weights (specific)"
MEAN_GATE = "mean gate: share of\nthe row's own weights"


class Observed(NamedTuple):
    """R rows as the best weights see them; None for what the model doesn't have.

    `attention` [S N] is what each field receives on average (`mean_attention`); `weight` is what a
    row's loss counts once the weighing of rows has started.
    """

    scores: Scores
    attention: np.ndarray | None
    weight: np.ndarray | None


def inspect_run(
    directory: Path, data: Path | None, split: str, out: Path | None, console: Console
) -> list[Path]:
    """Draws everything that the run has to show, as PNG and SVG; returns the files."""
    run = open_run(directory)
    if out is not None:
        claim(out, "pictures")
    prepared = run.prepared(data)
    warn_of_doubt(run, prepared, console)
    loaded = load_best(run)
    observed = observe(run, loaded, prepared, split)
    evaluation = evaluate_scores(observed.scores, run.schema.scenarios, RESAMPLES)
    folder = directory / "figures" if out is None else out
    with writing(folder):
        files = [
            path
            for name, figure in figures(run, loaded.step, observed, evaluation, split)
            for path in save(figure, folder / name)
        ]
        files += draw_attention(folder, prepared, observed)
    Console().print(
        evaluation_table(f"{directory}: {split} rows", evaluation), trust_table(evaluation)
    )
    console.print(f"{len(files)} pictures are in {folder}")
    if never_weighed(run, observed, loaded.step):
        first = adaptation_start(run) + 1
        console.print(
            f"none is of loss weights: rows are weighed from step {first:,} on, and the best "
            f"weights are of step {loaded.step:,}"
        )
    return files


def observe(run: Run, loaded: Loaded, prepared: Prepared, split: str) -> Observed:
    """Scores a split once, with everything that the model says of a row."""
    schema, trainer, state = run.schema, loaded.trainer, loaded.state
    params = trainer.weights(state)
    batches = list(evaluation_batches(prepared.rows(split), batch_size=run.config.train.batch_size))
    received = np.zeros((schema.num_scenarios, schema.num_fields))
    scored = [
        (batch, output._replace(attention=None))
        for batch, output in adding_attention(
            received,
            score_batches(trainer.score_step, params, state.model_state, batches, trainer.mesh),
        )
    ]
    scores = collect_scores(scored, schema.user_slot)
    # D3's weights come with the scores; other adapters weigh by what they remember.
    weight = adapter_weights(run, loaded, batches) if scores.weight is None else scores.weight
    return Observed(
        scores,
        attention=mean_attention(received, scores.scenario),
        weight=None if weight is None or np.ptp(weight) == 0 else weight,
    )


def adapter_weights(run: Run, loaded: Loaded, batches: list[Batch]) -> np.ndarray | None:
    """Return the weight of each row's loss by the run's adapter; None for a run without one."""
    adapter = _active_adapter(run, loaded)
    if adapter is None:
        return None
    # The forward pass that training weighs rows by, on one device, with the attention's logits.
    model = loaded.trainer.model
    params = _on_one_device(loaded.trainer.weights(loaded.state))
    model_state = _on_one_device(loaded.state.model_state)
    adapter_state = _on_one_device(loaded.state.adapter_state)
    step = _on_one_device(loaded.state.step)

    @jax.jit
    def weigh(batch: Batch) -> jax.Array:
        output, _ = model.apply(params, model_state, batch, EVALUATION)
        return adapter.row_weights(adapter_state, output, batch, step, EVALUATION)

    return np.concatenate([np.asarray(weigh(batch))[batch.mask] for batch in batches])


def figures(
    run: Run, best_step: int, observed: Observed, evaluation: Evaluation, split: str
) -> Iterator[tuple[str, Figure]]:
    """Names and figures of what the run has; D3's loss weights only where they were applied."""
    groups = _groups(run, observed.scores)
    training, curves = read_curves(run)
    logloss, auc, gate, weight = (curves[name] for name in WRITTEN)
    if logloss:
        yield "learning-curves", learning_curves(training, logloss, auc, best_step)
    probability = 1.0 / (1.0 + np.exp(-observed.scores.logits.astype(np.float64)))
    label = observed.scores.label.astype(np.float64)
    bins = {name: calibration(probability[rows], label[rows]) for name, rows in groups.items()}
    errors = {name: _calibration_note(evaluation, name) for name in groups}
    yield "calibration", calibration_curves(bins, errors)
    note = f"{split} rows; box: quartiles, whiskers: 5th to 95th percentile"
    start = adaptation_start(run)
    if gate:
        yield "gates-over-training", balance_curves(gate, MEAN_GATE, best_step, None)
    if weight and (training.steps or [0])[-1] > start:
        yield (
            "loss-weights-over-training",
            balance_curves(weight, "mean loss weight,\nonce rows are weighed", best_step, start),
        )
    gates = observed.scores.gate
    if gates is not None:
        specific = {name: gates[rows] for name, rows in groups.items()}
        yield "gates", distributions(specific, GATE, note)
    if observed.weight is not None and not never_weighed(run, observed, best_step):
        weights = {name: observed.weight[rows] for name, rows in groups.items()}
        yield "loss-weights", distributions(weights, "loss weight of a row", note)


def draw_attention(folder: Path, prepared: Prepared, observed: Observed) -> list[Path]:
    """The heat map of attention by scenario and field (Figure 4 of the D3 paper)."""
    if observed.attention is None:
        return []
    schema, mean = prepared.schema, observed.attention
    names = [field.name for field in schema.fields]
    files = [folder / "attention.png", folder / "attention.svg"]
    for path in files:
        attention_heat_map(path, mean, schema.scenarios, names, planted_fields(prepared))
    return files


def read_curves(run: Run) -> tuple[Curve, dict[str, dict[str, Curve]]]:
    """Training loss, and by name and group what was measured on validation rows, from
    metrics.jsonl."""
    lines, _ = read_journal(run.directory / "metrics.jsonl")

    def by_group(metric: str) -> dict[str, Curve]:
        curves = {
            group: _curve(lines, f"validation/{group}/{metric}")
            for group in (*run.schema.scenarios, OVERALL)
        }
        return {group: curve for group, curve in curves.items() if curve.steps}

    return _curve(lines, "train/loss"), {metric: by_group(metric) for metric in WRITTEN}


def adaptation_start(run: Run) -> int:
    """The step from which on D3 weighs rows."""
    steps = steps_per_epoch(run.training_rows, run.config.train.batch_size)
    return balance_start(run.config, total_steps(run.config.train, steps))


def never_weighed(run: Run, observed: Observed, best_step: int) -> bool:
    """Return whether the best weights are older than D3's weighing of rows."""
    return observed.scores.weight is not None and best_step <= adaptation_start(run)


def _active_adapter(run: Run, loaded: Loaded) -> LossAdapter | None:
    """The adapter that weighs the run's rows in the place of D3's balance; None without one."""
    config = run.config
    if config.adapter.adapter == "none":
        return None
    steps = steps_per_epoch(run.training_rows, config.train.batch_size)
    return build_adapter(config, loaded.trainer.model, steps)


def _on_one_device(tree: Tree) -> Tree:
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def _groups(run: Run, scores: Scores) -> dict[str, np.ndarray]:
    """The rows of each scenario that has any."""
    rows = {name: scores.scenario == index for index, name in enumerate(run.schema.scenarios)}
    return {name: mine for name, mine in rows.items() if mine.any()}


def _calibration_note(evaluation: Evaluation, name: str) -> str:
    group = evaluation.scenarios[name]
    return f"PCOC {number_text(group.pcoc)}, ECE {number_text(group.ece)}"


def _curve(lines: list[dict[str, float]], name: str) -> Curve:
    points = [(int(line["step"]), line[name]) for line in lines if name in line]
    return Curve([step for step, _ in points], [value for _, value in points])
