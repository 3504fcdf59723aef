"""The loop: when it evaluates, saves, logs and stops, and that stopping changes nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.adapters.d3 import BalanceOptions
from d3jax.base import EVALUATION, Output
from d3jax.config import TrainConfig
from d3jax.embedding import EmbeddingParams
from d3jax.errors import ConfigError, DataError, Preempted, TrainingError
from d3jax.parameters import named_leaves
from d3jax.parts import build_adapter, build_model, build_trainer
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.loop import (
    Data,
    Member,
    Observer,
    Progress,
    evaluate,
    finished,
    monitored,
    never,
    place_ahead,
    total_steps,
)
from d3jax.training.loop import train as train_members
from d3jax.training.metrics import Evaluation, Metrics
from d3jax.training.sharding import make_mesh, place_batch
from d3jax.training.step import Scored, StepInfo
from tests.d3jax.training.world import make_batch

STEPS = 4
"""Steps of an epoch."""
NEVER = 1000
CONFIG = TrainConfig(
    batch_size=64, epochs=3, patience=0, evaluate_every=NEVER, checkpoint_every=NEVER, log_every=5
)


class Log:
    """An observer that remembers everything."""

    def __init__(self):
        self.steps, self.logs, self.evaluations, self.saves = [], [], [], []
        self.skips = []

    def stepped(self, step):
        self.steps.append(step)

    def logged(self, step, loss):
        self.logs.append((step, loss))

    def evaluated(self, step, evaluation, improved):
        self.evaluations.append((step, evaluation, improved))

    def skipped(self, step, reason):
        self.skips.append((step, reason))

    def saving(self, step):
        self.saves.append(step)


def config_of(**changes):
    return dataclasses.replace(CONFIG, **changes)


def fit(trainer, config, data, state, progress, checkpoints, log, should_stop=never):
    """The loop with one member."""
    member = Member(data, progress, checkpoints, log)
    state, [progress] = train_members(trainer, config, [member], state, should_stop)
    return state, progress


def data_of(schema, batch_of=None, validation=None):
    """The batch of each step is drawn from its number."""

    def training(start, stop):
        draw = batch_of or (lambda step: make_batch(schema, 64, seed=step, padding=step % 5))
        return (draw(step) for step in range(start + 1, stop + 1))

    rows = validation or make_batch(schema, 64, seed=99, padding=9)
    return Data(STEPS, training, lambda: iter([rows]))


@pytest.fixture(scope="module")
def trainer(schema, config):
    """A model without D3, which compiles fast, and with dropout, which needs the right key."""
    model = dataclasses.replace(
        config.model, head="own", tower_layers=(3,), bottom_layers=(5,), embedding_dropout=0.2
    )
    small = dataclasses.replace(config, model=model, train=CONFIG)
    return build_trainer(schema, small, STEPS, make_mesh(jax.devices()[:2]))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path, {})
    yield opened
    opened.close()


@pytest.fixture
def start(trainer, checkpoints, schema):
    """`start(config, ...)`: a new run's log, end state and progress."""

    def run(config, trainer=trainer, data=None, should_stop=lambda step: False):
        data = data or data_of(schema)
        log = Log()
        end = fit(trainer, config, data, trainer.init(), Progress(), checkpoints, log, should_stop)
        return log, *end

    return run


def with_scores(trainer, losses):
    """The trainer, whose n-th evaluation on rows that are all clicked has the n-th logloss."""
    logits = (-math.log(math.expm1(loss)) for loss in losses)

    def score(params, model_state, batch):
        return Scored(jnp.full(batch.label.shape, next(logits)), None, None)

    return trainer._replace(score_step=score)


def clicked(schema):
    batch = make_batch(schema, 64, seed=0)
    return data_of(schema, validation=batch._replace(label=np.ones(64, np.float32)))


def with_steps(trainer, info):
    """The trainer, whose steps do nothing but report `info`."""
    return trainer._replace(train_step=lambda state, batch: (state, info))


def test_the_log_is_an_observer():
    assert isinstance(Log(), Observer)


@pytest.mark.parametrize(
    ("losses", "patience", "evaluated", "best", "kept"),
    [
        ([0.6, 0.5, 0.55, 0.52, 0.3], 2, [4, 8, 12, 16], 8, [8, 12, 16]),
        ([0.5, 0.5, 0.5, 0.1], 2, [4, 8, 12], 4, [4, 8, 12]),
        ([0.5, 0.6, 0.1], 1, [4, 8], 4, [4, 8]),
        ([0.5, 0.6, 0.4, 0.6, 0.3], 2, [4, 8, 12, 16, 20], 20, [12, 16, 20]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0, [4, 8, 12, 16, 20], 4, [4, 16, 20]),
    ],
)
def test_training_stops_when_patience_runs_out_and_the_best_step_is_kept(
    trainer, schema, checkpoints, start, losses, patience, evaluated, best, kept
):
    config = config_of(epochs=5, evaluate_every=1.0, patience=patience)
    log, state, progress = start(config, with_scores(trainer, losses), clicked(schema))
    assert [step for step, *_ in log.evaluations] == evaluated
    scored = [evaluation.overall.logloss for _, evaluation, _ in log.evaluations]
    np.testing.assert_allclose(scored, losses[: len(evaluated)], rtol=1e-6)
    improved = [step for step, _, better in log.evaluations if better]
    assert (improved[0], improved[-1]) == (4, best)
    assert (progress.step, progress.best_step) == (evaluated[-1], best)
    assert progress.best_metric == min(scored)
    assert state.step == log.steps[-1] == evaluated[-1]
    assert checkpoints.steps() == kept


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1.0, [4, 8, 12]),
        (0.5, [2, 4, 6, 8, 10, 12]),
        (0.01, list(range(1, 13))),
        (0.8, [3, 6, 9, 12]),
        (1.25, [5, 10, 12]),
        (2.0, [8, 12]),
        (100.0, [12]),
    ],
)
def test_evaluations_come_every_so_many_epochs_and_at_the_end(start, trainer, every, steps):
    nothing = with_steps(trainer, StepInfo(jnp.ones(()), jnp.ones(()), jnp.ones(())))
    log, _, _ = start(config_of(evaluate_every=every), nothing)
    assert [step for step, *_ in log.evaluations] == steps
    assert log.saves == steps, "and each is saved"


def test_checkpoints_come_every_so_many_steps_beside_those_of_evaluations(start, checkpoints):
    log, _, _ = start(config_of(evaluate_every=1.5, checkpoint_every=5))
    assert log.saves == [5, 6, 10, 12]
    assert checkpoints.steps() == [6, 10, 12], "6 was the best that step 10 knew of"


def test_losses_are_logged_as_means_of_their_windows(start, trainer, schema):
    log, end, _ = start(CONFIG)
    state, losses = trainer.init(), []
    for batch in place_ahead(trainer, zip(data_of(schema).training(0, 12))):
        state, info = trainer.train_step(state, batch)
        losses.append(float(info.loss))
    windows = [losses[:5], losses[5:10], losses[10:]]
    assert [step for step, _ in log.logs] == [5, 10, 12]
    np.testing.assert_allclose([loss for _, loss in log.logs], list(map(np.mean, windows)))
    assert log.steps == list(range(1, 13))
    assert bits(end) == bits(state)


INTERRUPTED = config_of(evaluate_every=1.5, checkpoint_every=4)


def bits(state):
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


@pytest.fixture(scope="module")
def uninterrupted(trainer, schema, tmp_path_factory):
    """What was observed, and the bits and progress at the end."""
    checkpoints, log = Checkpoints(tmp_path_factory.mktemp("whole"), {}), Log()
    state, progress = fit(
        trainer, INTERRUPTED, data_of(schema), trainer.init(), Progress(), checkpoints, log
    )
    checkpoints.close()
    return log, bits(state), progress


def run_with_stops(trainer, schema, directory, stops):
    """A run that is asked to stop after each step of `stops` and is resumed, all in one log."""
    log, state, progress = Log(), trainer.init(), Progress()
    data = data_of(schema)

    def asked_to_stop(step):
        return log.steps[-1] in stops

    for stop in sorted(stops - {12}):
        checkpoints = Checkpoints(directory, {})
        message = f"^stopped after step {stop}, which is saved; resume to go on$"
        with pytest.raises(Preempted, match=message):
            fit(trainer, INTERRUPTED, data, state, progress, checkpoints, log, asked_to_stop)
        restored = checkpoints.restore(trainer.abstract)
        checkpoints.close()
        assert restored.step == log.steps[-1] == stop
        state, progress = restored.state, Progress.from_json(restored.progress)
    checkpoints = Checkpoints(directory, {})
    end = fit(trainer, INTERRUPTED, data, state, progress, checkpoints, log, asked_to_stop)
    checkpoints.close()
    return log, bits(end[0]), end[1]


@pytest.mark.parametrize("stops", [{7}, {2, 3, 9}, set(range(1, 13))], ids=str)
def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(
    trainer, schema, tmp_path, uninterrupted, stops
):
    whole, state, progress = uninterrupted
    log, our_state, our_progress = run_with_stops(trainer, schema, tmp_path, stops)
    assert log.steps == whole.steps
    assert log.logs == whole.logs
    assert log.evaluations == whole.evaluations
    assert set(log.saves) == set(whole.saves) | stops
    assert our_state == state
    assert our_progress == progress


def test_a_run_killed_between_checkpoints_logs_the_same_windows_again(
    trainer, schema, checkpoints, uninterrupted
):
    class Killed(Exception):
        pass

    class Killer(Log):
        def stepped(self, step):
            super().stepped(step)
            if step == 11:
                raise Killed

    whole, state, progress = uninterrupted
    first, then = Killer(), Log()
    data = data_of(schema)
    with pytest.raises(Killed):
        fit(trainer, INTERRUPTED, data, trainer.init(), Progress(), checkpoints, first)
    restored = checkpoints.restore(trainer.abstract)
    assert restored.step == 8
    again = Progress.from_json(restored.progress)
    end, our_progress = fit(trainer, INTERRUPTED, data, restored.state, again, checkpoints, then)
    assert first.logs == whole.logs[:2]
    assert then.logs == whole.logs[1:]
    assert (bits(end), our_progress) == (state, progress)


def test_the_steps_compile_once_in_all_runs_resumed_or_not(trainer, schema, tmp_path):
    run_with_stops(trainer, schema, tmp_path, {3, 7})
    assert trainer.train_step._cache_size() == 1
    assert trainer.score_step._cache_size() == 1


def poisoned(schema, bad_step, rows=slice(None)):
    """Data whose batch of one step has labels that are no numbers."""

    def batch_of(step):
        batch = make_batch(schema, 64, seed=step)
        if step == bad_step:
            batch.label[rows] = np.nan
        return batch

    return data_of(schema, batch_of)


@pytest.mark.parametrize(("every", "stepped", "kept"), [(1, 3, [1, 2]), (2, 4, [2]), (5, 5, [])])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    start, checkpoints, schema, every, stepped, kept
):
    seen = []
    message = (
        r"^the loss at step 3 is nan and the gradient's norm nan\. 64 of the batch's rows have "
        r"such a loss, the first is row 0 of the batch\. The first parameter whose gradient isn't "
        r"finite is bottom\.0\.kernel\. Nothing of it was saved\. Look at those rows, try a "
        r"smaller --learning-rate, or start again with --debug to see the operation or "
        r"--on-nonfinite skip to leave such batches out$"
    )
    config = config_of(checkpoint_every=every)
    with pytest.raises(TrainingError, match=message):
        start(config, data=poisoned(schema, 3), should_stop=lambda step: bool(seen.append(1)))
    checkpoints.wait()
    assert len(seen) == stepped, "it is noticed at the next fetch"
    assert checkpoints.steps() == kept


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [(math.inf, 1.0, "loss at step 1 is inf and"), (0.5, math.inf, r"gradient's norm inf\.")],
)
def test_an_infinite_loss_or_gradient_ends_the_run(start, trainer, checkpoints, loss, norm, told):
    info = StepInfo(jnp.float32(loss), jnp.float32(loss), jnp.float32(norm))
    with pytest.raises(TrainingError, match=told):
        start(config_of(checkpoint_every=1), with_steps(trainer, info))
    assert checkpoints.steps() == []


def test_the_message_locates_the_first_bad_row(start, checkpoints, schema):
    data = poisoned(schema, 3, rows=slice(17, 20))
    data = data._replace(locate=lambda step, row: f"line {100 * step + row} of the log")
    message = r"3 of the batch's rows have such a loss, the first is line 317 of the log\."
    with pytest.raises(TrainingError, match=message):
        start(config_of(), data=data)


def test_a_bad_parameter_is_named_when_no_row_is(trainer):
    state, batch = (
        trainer.init(),
        place_batch(trainer.mesh, make_batch(trainer.model.schema, 64, 1)),
    )
    table = state.params.embedding.table.at[:40].set(3e38)  # finite, but its gradient is not
    params = state.params._replace(embedding=EmbeddingParams(table))
    _, info = trainer.train_step(state._replace(params=params), place_batch(trainer.mesh, batch))
    names = list(named_leaves(trainer.model.declared.params.network))
    assert names[int(info.trouble.parameter)] == "bottom.0.kernel"


@pytest.fixture(scope="module")
def skipping(schema, config):
    """As `trainer`, but batches whose loss isn't finite are skipped."""
    model = dataclasses.replace(config.model, head="own", tower_layers=(3,), bottom_layers=(5,))
    train = dataclasses.replace(CONFIG, on_nonfinite="skip")
    small = dataclasses.replace(config, model=model, train=train)

    def build(update):
        optimizer = dataclasses.replace(config.optimizer, embedding_update=update)
        changed = dataclasses.replace(small, optimizer=optimizer)
        return build_trainer(schema, changed, STEPS, make_mesh(jax.devices()[:2]))

    return build


@pytest.mark.parametrize("update", ["dense", "lazy_adamw", "adagrad"])
def test_a_skipped_step_changes_nothing_but_the_steps_number(skipping, schema, update):
    trainer = skipping(update)
    good = place_batch(trainer.mesh, make_batch(schema, 64, seed=1))
    state, _ = trainer.train_step(trainer.init(), good)
    before = jax.device_get(state)
    batch = make_batch(schema, 64, seed=2)
    batch.label[5] = np.nan
    state, info = trainer.train_step(state, place_batch(trainer.mesh, batch))
    assert math.isnan(info.loss)
    after = jax.device_get(state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)
    state, info = trainer.train_step(state, good)
    assert math.isfinite(info.loss)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), jax.device_get(state.params), before.params
    )
    assert min(jax.tree.leaves(moved)) > 0


def test_skipped_steps_are_told_and_left_out_of_the_mean(start, skipping, schema):
    log, state, progress = start(
        config_of(on_nonfinite="skip"), skipping("dense"), poisoned(schema, 3)
    )
    [(step, reason)] = log.skips
    assert step == 3
    assert "64 of the batch's rows have such a loss" in reason
    assert progress.step == 12
    assert progress.skipped == 0
    assert all(math.isfinite(loss) for _, loss in log.logs)
    assert int(state.step) == 12


def test_a_run_that_only_skips_ends(start, skipping, schema):
    nothing = data_of(
        schema, lambda step: make_batch(schema, 64, step)._replace(label=np.full(64, np.nan, "f4"))
    )
    message = r"at step 11 is nan .* It was the 11th in a row\. Nothing of it was saved\. .*"
    with pytest.raises(TrainingError, match=message):
        start(config_of(on_nonfinite="skip"), skipping("dense"), nothing)


@pytest.mark.slow
def test_debugging_names_the_operation_and_the_bad_id(start, schema, config):
    model = dataclasses.replace(config.model, head="own", tower_layers=(3,), bottom_layers=(5,))
    small = dataclasses.replace(config, model=model, train=CONFIG)
    trainer = build_trainer(schema, small, STEPS, make_mesh(jax.devices()[:2]), debug=True)
    with pytest.raises(TrainingError, match=r"^step 3: .*nan generated by primitive: \w+"):
        start(config_of(), trainer, poisoned(schema, 3))
    outside = make_batch(schema, 64, seed=1)
    outside.ids[7, 0] = 40
    message = r"field 'user': id 40 in row 7 of the batch of step 1 is outside \[0, 40\)"
    with pytest.raises(DataError, match=message):
        start(config_of(), trainer, data_of(schema, lambda step: outside))


def test_auc_cannot_be_monitored_on_one_class(start, schema, checkpoints):
    message = (
        "^auc isn't defined on the validation rows, which hold one class only; "
        "use --monitor logloss, or more validation rows$"
    )
    with pytest.raises(TrainingError, match=message):
        start(config_of(monitor="auc", evaluate_every=1.0), data=clicked(schema))
    assert checkpoints.steps() == []


def test_what_is_monitored_and_which_way_is_better():
    evaluation = Evaluation(Metrics(9, 0.3, 0.7, 0.4, 0.6), {})
    assert monitored(config_of(monitor="auc"), evaluation) == (0.7, False)
    assert monitored(config_of(monitor="logloss"), evaluation) == (0.4, True)


@pytest.mark.parametrize(("lower", "better", "worse"), [(True, 0.4, 0.6), (False, 0.6, 0.4)])
def test_progress_counts_evaluations_since_the_best(lower, better, worse):
    first = Progress(step=1).after(1, 0.5, lower)
    assert (first.best_step, first.best_metric, first.stale) == (1, 0.5, 0)
    second = first.after(2, 0.5, lower).after(3, worse, lower)
    assert (second.best_step, second.best_metric, second.stale) == (1, 0.5, 2)
    third = second.after(4, better, lower)
    assert (third.best_step, third.best_metric, third.stale) == (4, better, 0)


@pytest.mark.parametrize(
    ("step", "stale", "patience", "expected"),
    [
        (0, 0, 0, False),
        (11, 50, 0, False),
        (12, 0, 0, True),
        (13, 0, 2, True),
        (8, 1, 2, False),
        (8, 2, 2, True),
        (0, 0, 2, False),
    ],
)
def test_finished(step, stale, patience, expected):
    progress = Progress(step=step, stale=stale)
    assert finished(config_of(patience=patience), progress, total_steps(CONFIG, 4)) is expected


@pytest.mark.parametrize("progress", [Progress(step=12), Progress(step=8, stale=2)])
def test_a_finished_run_is_left_as_it_is(trainer, checkpoints, progress):
    def training(start, stop):
        raise AssertionError("no batch is needed")

    state, log = trainer.init(), Log()
    data = Data(STEPS, training, training)
    end = fit(trainer, config_of(patience=2), data, state, progress, checkpoints, log)
    assert end == (state, progress)
    assert log.steps == checkpoints.steps() == []


def test_evaluation_counts_each_real_row_once(trainer, schema):
    batches = [make_batch(schema, 64, seed, padding=20 * seed) for seed in range(3)]
    [evaluation] = evaluate(trainer, trainer.init(), batches)
    labels = np.concatenate([batch.label[batch.mask] for batch in batches])
    assert evaluation.overall.rows == 64 + 44 + 24
    assert evaluation.overall.click_rate == pytest.approx(labels.mean())
    for index, name in enumerate(schema.scenarios):
        rows = sum(int((b.mask & (b.scenario == index)).sum()) for b in batches)
        assert evaluation.scenarios[name].rows == rows


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7])
def test_batches_are_placed_ahead_in_order(trainer, schema, number):
    asked = []

    def source():
        for seed in range(number):
            asked.append(seed)
            yield make_batch(schema, 64, seed)

    yielded = []
    for seed, batch in enumerate(place_ahead(trainer, zip(source()), ahead=2)):
        np.testing.assert_array_equal(batch.ids, make_batch(schema, 64, seed).ids)
        assert batch.ids.sharding.device_set == set(trainer.mesh.devices)
        assert len(asked) == min(seed + 3, number)
        yielded.append(seed)
    assert yielded == list(range(number))


@pytest.mark.parametrize(("ratio", "first"), [(0.0, 0), (0.5, 6), (0.99, 11), (1.0, None)])
def test_the_balance_starts_after_its_share_of_all_steps(schema, config, ratio, first):
    config = dataclasses.replace(config, train=CONFIG, balance=BalanceOptions(start_ratio=ratio))
    adapter = build_adapter(config, build_model(schema, config), STEPS)
    rng = np.random.default_rng(0)
    attention = jnp.asarray(rng.normal(size=(64, 3, 3)), jnp.float32)
    gate = jax.nn.softmax(jnp.asarray(rng.normal(size=(64, 2)), jnp.float32))
    output = Output(jnp.zeros(64), attention, gate)
    batch = jax.tree.map(jnp.asarray, make_batch(schema, 64, seed=0))
    weighted = [
        step
        for step in range(14)
        if np.ptp(adapter.row_weights((), output, batch, jnp.int32(step), EVALUATION)) > 0.01
    ]
    assert weighted == ([] if first is None else list(range(first, 14)))


def test_a_batch_that_the_devices_cannot_share_is_refused(schema, config):
    odd = dataclasses.replace(config, train=config_of(batch_size=63))
    with pytest.raises(ConfigError, match="batch_size is 63, which 8 devices can't share"):
        build_trainer(schema, odd, STEPS)
