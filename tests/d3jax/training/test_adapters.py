"""The loss adapters against the float64 reference, alone and in the step on eight devices."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from d3jax.adapters.d3 import binary_cross_entropy, unweighted
from d3jax.adapters.dtp import (
    AUC_BINS,
    AUC_LIMIT,
    DTPOptions,
    dtp,
    dtp_weights,
    focal_cross_entropy,
    histogram_auc,
    score_histogram,
)
from d3jax.adapters.dwa import DWAOptions, dwa, dwa_weights
from d3jax.adapters.gradnorm import (
    GradNormOptions,
    default_watched,
    find_watched,
    gradnorm,
    gradnorm_gradient,
    rescale,
)
from d3jax.adapters.learned import declare_learned, descend
from d3jax.adapters.scenarios import equal, period_of
from d3jax.adapters.share import share
from d3jax.adapters.uncertainty import uncertainty, uncertainty_gradient
from d3jax.base import EVALUATION, Feedback, Mode, Output
from d3jax.batch import Batch
from d3jax.config import AdapterConfig, ModelConfig, TrainConfig
from d3jax.errors import ConfigError
from d3jax.parameters import initialize, named_leaves
from d3jax.parts import build_adapter, build_model, build_trainer
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.sharding import make_mesh, place_batch
from tests.cases import cases
from tests.d3jax.training import reference_adapters as reference
from tests.d3jax.training.world import largest_difference, make_batch

S, ROWS, REAL = 3, 24, 21
AGGREGATIONS = ("row", "scenario_sum")
ADAPTERS = {
    "dwa": AdapterConfig("dwa"),
    "dtp": AdapterConfig("dtp", "scenario_sum"),
    "gradnorm": AdapterConfig("gradnorm", "scenario_sum"),
    "uncertainty": AdapterConfig("uncertainty"),
    "share": AdapterConfig("share"),
}
OPTIONS = {
    "dwa": DWAOptions(period_steps=2, temperature=0.5),
    "dtp": DTPOptions(period_steps=2, kpi_smoothing=0.5, mean_one=True),
    "gradnorm": GradNormOptions(watched="0.kernel"),
}


def rows_of(seed, present=(0, 1, 2), bias=0.0):
    """A padded batch and its logits, which lie in the middle of DTP's bins and often tie."""
    rng = np.random.default_rng(seed)
    width = 2 * AUC_LIMIT / AUC_BINS
    logits = (np.floor(rng.normal(bias, 1.5, ROWS) / 0.3) * 0.3 // width + 0.5) * width
    label = (rng.random(ROWS) < 0.4).astype(np.float32)
    scenario = rng.choice(present, ROWS).astype(np.int32)
    ids = np.zeros((ROWS, 1), np.int32)
    return logits.astype(np.float32), Batch(ids, scenario, label, np.arange(ROWS) < REAL)


def weights_of(adapter, state, logits, batch):
    output = Output(jnp.asarray(logits))
    return adapter.row_weights(state, output, batch, jnp.int32(0), EVALUATION)


def start(adapter):
    return initialize(adapter.state, jax.random.key(0))


def drive(adapter, batches, norms=None):
    """The state before each step and after the last, by the jitted update."""

    @jax.jit
    def update(state, logits, batch, step, norms):
        losses = adapter.row_losses(logits, batch.label)
        feedback = Feedback(Output(logits), batch, losses, norms)
        return adapter.update(state, feedback, step, EVALUATION)

    states = [start(adapter)]
    for step, (logits, batch) in enumerate(batches):
        given = None if norms is None else norms[step]
        batch = jax.tree.map(jnp.asarray, batch)
        states.append(update(states[-1], jnp.asarray(logits), batch, step, given))
    return states


def agree(adapter, theirs, states, batches, aggregation, norms=None):
    """Row weights before every step, and after the last, are the reference's."""
    for step, (logits, batch) in enumerate([*batches, batches[0]]):
        ours = weights_of(adapter, states[step], logits, batch)[:REAL]
        scenario = batch.scenario[:REAL]
        expected = reference.row_weights(theirs.weights, scenario, aggregation)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, err_msg=f"step {step}")
        given = () if norms is None else (np.float64(norms[step % len(norms)]),)
        theirs.update(np.float64(logits[:REAL]), batch.label[:REAL], scenario, *given)


# Scenario 1 is away for a whole period of three steps, scenario 2 comes late.
COMINGS = [(0, 1)] * 3 + [(0, 1, 2)] * 3 + [(0, 2)] * 3 + [(0, 1, 2)] * 4
BATCHES = [rows_of(seed, present, seed / 9) for seed, present in enumerate(COMINGS)]


def test_share_weighs_by_the_rows_seen_so_far():
    adapter, rows = share(0.5, S), np.zeros(S)
    states = drive(adapter, BATCHES)
    for step, (logits, batch) in enumerate(BATCHES):
        scenario = batch.scenario[:REAL]
        rows += np.bincount(scenario, minlength=S)
        seen = np.maximum(rows, 1)
        expected = ((seen / seen.sum()) ** -0.5)[scenario]
        ours = weights_of(adapter, states[step], logits, batch)[:REAL]
        np.testing.assert_allclose(ours, expected / expected.mean(), rtol=1e-5)
    np.testing.assert_array_equal(states[-1].rows, rows)


def test_share_weighs_rows_only(schema, tiny):
    config = with_adapter(tiny, AdapterConfig("share", "scenario_sum"))
    with pytest.raises(ConfigError, match="share weighs rows; use --aggregation row"):
        build_adapter(config, build_model(schema, config), 4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_dwa_follows_the_reference(aggregation):
    adapter = dwa(DWAOptions(temperature=0.7), aggregation, S, period=3)
    states = drive(adapter, BATCHES)
    agree(adapter, reference.DWA(S, 3, 0.7), states, BATCHES, aggregation)
    np.testing.assert_allclose([state.weights for state in states[:6]], 1.0, rtol=1e-6)
    assert np.ptp(states[6].weights) > 0.02
    np.testing.assert_array_equal(states[6].weights, states[8].weights)
    assert np.abs(states[9].weights - states[8].weights).max() > 0.02


def test_dtp_follows_the_reference():
    adapter = dtp(DTPOptions(kpi_smoothing=0.3, scenario_focus=2.0), "row", S, period=3)
    states = drive(adapter, BATCHES)
    agree(adapter, reference.DTP(S, 3, 0.3, 2.0), states, BATCHES, "row")
    np.testing.assert_array_equal(states[2].kpi, [0.5] * S)
    assert states[3].kpi[2] == 0.5, "scenario 2 had no row in the first window"
    assert states[3].kpi[0] != 0.5
    assert states[9].kpi[1] == states[6].kpi[1], "nor scenario 1 in the third"


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_uncertainty_follows_the_reference(aggregation):
    adapter = uncertainty(aggregation, S, learning_rate=0.05)
    theirs = reference.Uncertainty(S, 0.05, aggregation)
    states = drive(adapter, BATCHES)
    agree(adapter, theirs, states, BATCHES, aggregation)
    np.testing.assert_array_equal(states[-1].adam.count, [len(BATCHES), 10, 10])


def test_gradnorm_follows_the_reference_and_its_weights_sum_to_s():
    options = GradNormOptions(asymmetry=0.8)
    adapter = gradnorm(options, "scenario_sum", S, "bottom.0.kernel")
    norms = np.random.default_rng(0).uniform(0.5, 1, (len(BATCHES), S)).astype(np.float32)
    norms *= np.float32([1, 2, 4])
    states = drive(adapter, BATCHES, norms)
    agree(adapter, reference.GradNorm(S, 0.8), states, BATCHES, "scenario_sum", norms)
    np.testing.assert_allclose([state.value.sum() for state in states], S, rtol=1e-6)
    assert np.ptp(states[-1].value) > 0.05


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_absent_scenario_changes_nothing_of_its_own(name):
    """Two steps with all, then steps within one period that lack scenario 1, or all rows."""
    aggregation = ADAPTERS[name].aggregation
    adapter = {
        "dwa": lambda: dwa(OPTIONS["dwa"], aggregation, S, period=5),
        "dtp": lambda: dtp(OPTIONS["dtp"], aggregation, S, period=5),
        "gradnorm": lambda: gradnorm(OPTIONS["gradnorm"], aggregation, S, "bottom.0.kernel"),
        "uncertainty": lambda: uncertainty(aggregation, S, 0.1),
        "share": lambda: share(0.5, S),
    }[name]()
    logits, batch = rows_of(7)
    none = (logits, batch._replace(mask=np.zeros(ROWS, bool)))
    batches = [rows_of(1), rows_of(2), rows_of(3, (0, 2)), none]
    norms = np.array([[1, 2, 3]] * 3 + [[0, 0, 0]], np.float32)
    states = drive(adapter, batches, norms)
    for before, after in zip(*(jax.tree.leaves(states[at]) for at in (2, 3)), strict=True):
        np.testing.assert_array_equal(before[1], after[1])
    moved = [np.any(a[0] != b[0]) for a, b in zip(*map(jax.tree.leaves, states[2:4]), strict=True)]
    assert any(moved)
    jax.tree.map(np.testing.assert_array_equal, states[3], states[4])


def test_dwa_numbers():
    ours = dwa_weights(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]), 2.0)
    np.testing.assert_allclose(ours, [0.87565, 1.12435], atol=5e-6)


def test_dwa_takes_a_scenario_without_a_previous_loss_to_stand_still():
    ours = dwa_weights(jnp.array([3.0, 0.7, 0.0]), jnp.array([3.0, 0.0, 0.0]), 2.0)
    np.testing.assert_allclose(ours, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "steps", "given", "period"),
    [(3, 70, 0, 70), (2, 70, 0, 7), (1, 9, 0, 1), (3, 9, 4, 4)],
)
def test_an_automatic_period_is_an_epoch_or_a_twentieth(epochs, steps, given, period):
    assert period_of(given, steps, epochs * steps) == period


@pytest.mark.parametrize(("gamma", "expected"), [(1.0, 0.20433), (2.0, 0.08173)])
def test_dtp_numbers(gamma, expected):
    np.testing.assert_allclose(dtp_weights(jnp.array([0.6]), gamma), expected, atol=5e-6)


def test_dtp_weights_can_have_mean_one():
    adapter = dtp(DTPOptions(mean_one=True), "row", S, 9)
    state = start(adapter)._replace(kpi=jnp.array([0.5, 0.6, 0.9]))
    raw = np.array([-(1 - k) * math.log(k) for k in (0.5, 0.6, 0.9)])
    batch = rows_of(0)[1]._replace(scenario=np.arange(ROWS, dtype=np.int32) % S)
    ours = weights_of(adapter, state, np.zeros(ROWS, np.float32), batch)
    np.testing.assert_allclose(ours[:S], raw / raw.mean(), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_losses_and_their_gradient_through_the_factor(gamma):
    logits, label = np.repeat([-4.0, -0.3, 0.0, 2.5], 2), np.tile([0.0, 1.0], 4)
    ours, pull = jax.vjp(
        lambda z: focal_cross_entropy(z, jnp.float32(label), gamma), jnp.float32(logits)
    )
    pairs = list(zip(logits, label, strict=True))
    np.testing.assert_allclose(
        ours, [reference.focal_bce(z, y, gamma) for z, y in pairs], rtol=2e-6
    )
    slope = [
        (reference.focal_bce(z + 1e-5, y, gamma) - reference.focal_bce(z - 1e-5, y, gamma)) / 2e-5
        for z, y in pairs
    ]
    np.testing.assert_allclose(pull(jnp.ones(8))[0], slope, rtol=2e-5)


def test_focal_losses_of_extreme_logits_have_finite_gradients():
    logits, label = jnp.array([-300.0, -300, 300, 300]), jnp.array([0.0, 1, 0, 1])
    gradient = jax.grad(lambda z: focal_cross_entropy(z, label, 0.5).sum())(logits)
    np.testing.assert_allclose(gradient, [0, -1, 1, 0], atol=1e-6)


def histogram_of(logits, label, scenario):
    batch = Batch(np.zeros((logits.size, 1), int), scenario, label, np.ones(logits.size, bool))
    feedback = Feedback(Output(jnp.asarray(logits)), batch, jnp.zeros(logits.size))
    return score_histogram(feedback, S)


@pytest.mark.parametrize("rate", [0.5, 0.04, 0.0005])
def test_auc_from_bins_is_near_the_exact_one_at_any_click_rate(rate):
    rng = np.random.default_rng(3)
    logits = np.float32(math.log(rate / (1 - rate)) + rng.normal(0, 0.8, 200_000))
    label = np.float32(rng.random(logits.size) < 1 / (1 + np.exp(-logits)))
    scenario = rng.integers(0, S, logits.size).astype(np.int32)
    ours = histogram_auc(histogram_of(logits, label, scenario))
    exact = [roc_auc_score(label[scenario == s], logits[scenario == s]) for s in range(S)]
    np.testing.assert_allclose(ours, exact, atol=2e-3)


def test_scores_beyond_the_bins_are_counted_in_the_outermost():
    logits, label = np.float32([-99, -10.5, 10.5, 99]), np.float32([0, 1, 0, 1])
    histogram = histogram_of(logits, label, np.full(4, 1, np.int32))
    assert histogram.sum() == 4
    np.testing.assert_array_equal(histogram[1, :, 0], [1, 1])
    np.testing.assert_array_equal(histogram[1, :, -1], [1, 1])
    assert histogram_auc(histogram)[1] == 0.5 * 0.5 + 0.25


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_window_that_lacks_a_class_keeps_the_kpi(label):
    adapter = dtp(DTPOptions(), "row", S, 1)
    logits, batch = rows_of(0)
    one_class = np.where(batch.scenario == 1, label, batch.label).astype(np.float32)
    states = drive(adapter, [(logits, batch._replace(label=one_class))])
    assert states[1].kpi[1] == 0.5
    assert (states[1].kpi[jnp.array([0, 2])] != 0.5).all()
    assert states[1].histogram.sum() == 0, "a new window starts empty"


@pytest.mark.parametrize(("sign", "kpi"), [(1, 0.99), (-1, 0.05)])
def test_a_perfect_scenario_keeps_a_weight(sign, kpi):
    adapter = dtp(DTPOptions(kpi_smoothing=1.0), "row", S, 1)
    _, batch = rows_of(0)
    logits = np.float32(sign * (2 * batch.label - 1))
    np.testing.assert_allclose(drive(adapter, [(logits, batch)])[1].kpi, kpi, rtol=1e-6)


def test_uncertainty_comes_to_rest_at_twice_the_loss():
    learned = initialize(declare_learned(2, jax.nn.initializers.zeros), jax.random.key(0))
    losses, rows = jnp.array([0.2, 0.7]), jnp.array([5.0, 3.0])

    def move(_, learned):
        gradient = uncertainty_gradient(learned.value, losses, rows, "scenario_sum")
        return descend(learned, gradient, rows > 0, 0.01)

    rest = jax.jit(lambda start: jax.lax.fori_loop(0, 800, move, start))(learned)
    np.testing.assert_allclose(jnp.exp(rest.value), [0.4, 1.4], rtol=2e-3)
    there = uncertainty_gradient(jnp.log(2 * losses), losses, rows, "row")
    np.testing.assert_allclose(there, 0.0, atol=1e-7)


@pytest.mark.parametrize(("asymmetry", "signs"), [(0.3, [-1, 1]), (1.5, [1, -1])])
def test_gradnorm_favours_what_learns_slowly_as_much_as_its_exponent_says(asymmetry, signs):
    """Mean norm 1.1; the targets are 1.04 and 1.15 at 0.3, and 0.84 and 1.39 at 1.5."""
    norms, losses = jnp.array([1.0, 1.2, 9]), jnp.array([0.5, 0.7, 9])
    present = jnp.array([True, True, False])
    gradient = gradnorm_gradient(jnp.ones(3), norms, losses, present, asymmetry)
    np.testing.assert_array_equal(gradient[:2], np.array(signs) * norms[:2])


def test_rescaling_keeps_the_sum_the_floor_and_the_absent():
    present = jnp.array([True, True, False, True])
    ours = rescale(jnp.array([-0.5, 1.0, 0.7, 2.0]), present)
    left = (4 - 0.7) / (1e-3 + 1.0 + 2.0)
    np.testing.assert_allclose(ours, [1e-3 * left, left, 0.7, 2 * left], rtol=1e-6)


def test_equal_weights_are_one_by_row_and_balance_scenarios_by_their_sum():
    logits, batch = rows_of(4)
    by_row = weights_of(equal("row", S), (), logits, batch)
    np.testing.assert_array_equal(by_row, np.ones(ROWS))
    ours = weights_of(equal("scenario_sum", S), (), logits, batch)
    losses = reference.bce(np.float64(logits), batch.label)[:REAL]
    scenario = batch.scenario[:REAL]
    means = [losses[scenario == s].mean() for s in set(scenario)]
    assert np.mean(np.asarray(ours)[:REAL] * losses) == pytest.approx(sum(means), rel=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_pass_no_gradient(aggregation):
    logits, batch = rows_of(4)
    adapter = uncertainty(aggregation, S, 0.1)
    state = start(adapter)

    def total(shift):
        moved = state._replace(value=state.value + shift)
        return weights_of(adapter, moved, logits + shift, batch).sum()

    assert jax.grad(total)(0.3) == 0.0


def with_adapter(config, adapter, head="own", parts="d2", optimizer=None):
    options = {k: v for k, v in OPTIONS.items() if k == adapter.adapter and head == "own"}
    return config.changed(
        **options,
        model=dataclasses.replace(config.model, head=head),
        d3=dataclasses.replace(config.d3, parts=parts),
        adapter=adapter,
        optimizer=optimizer or config.optimizer,
        train=TrainConfig(batch_size=64, epochs=2),
    )


@pytest.fixture
def tiny(config):
    """One hidden layer after the embeddings, for what depends on the adapter alone."""
    return config.changed(model=ModelConfig("plain", "own", 4, bottom_layers=(4,)))


def train(schema, config, devices, batches):
    mesh = make_mesh(jax.devices()[:devices])
    trainer = build_trainer(schema, config, steps_per_epoch=4, mesh=mesh)
    state, infos = trainer.init(), []
    for batch in batches:
        state, info = trainer.train_step(state, place_batch(mesh, batch))
        infos.append(jax.device_get(info))
    return SimpleNamespace(trainer=trainer, state=state, infos=infos)


@pytest.mark.parametrize("name", cases(ADAPTERS, quick=["gradnorm"]))
def test_eight_devices_equal_one_compile_once_and_go_through_a_checkpoint(
    schema, tiny, name, tmp_path
):
    config = with_adapter(tiny, ADAPTERS[name])
    batches = [make_batch(schema, 64, seed, padding=12 * (seed % 2)) for seed in range(6)]
    batches[4].scenario[batches[4].scenario == 1] = 0
    one, eight = train(schema, config, 1, batches), train(schema, config, 8, batches)
    assert eight.trainer.train_step._cache_size() == 1
    assert eight.infos[-1].loss == pytest.approx(one.infos[-1].loss, rel=2e-6)
    assert eight.infos[-1].loss != pytest.approx(eight.infos[-1].cross_entropy, rel=1e-4)
    assert largest_difference(eight.state.adapter_state, one.state.adapter_state) < 2e-5
    for leaf in jax.tree.leaves(eight.state.adapter_state):
        assert leaf.sharding.is_fully_replicated
        assert all(np.array_equal(s.data, leaf) for s in leaf.addressable_shards)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(6, eight.state, {})
    restored = checkpoints.restore(eight.trainer.abstract).state
    checkpoints.close()
    saved = jax.device_get(eight.state.adapter_state)
    jax.tree.map(np.testing.assert_array_equal, restored.adapter_state, saved)
    assert type(restored.adapter_state) is type(saved)
    again = [
        trained.trainer.train_step(state, place_batch(eight.trainer.mesh, batches[0]))
        for trained, state in ((eight, restored), (eight, eight.state))
    ]
    same = jax.tree.map(np.array_equal, *map(jax.device_get, again))
    assert all(jax.tree.leaves(same))


def test_before_dwa_starts_a_run_is_the_plain_one(schema, tiny):
    """Weights of 1 under `row` give plain cross-entropy, to the last bit, in every step."""
    batches = [make_batch(schema, 64, seed, padding=9) for seed in range(5)]
    plain = train(schema, with_adapter(tiny, AdapterConfig()), 8, batches)
    weighed = train(schema, with_adapter(tiny, ADAPTERS["dwa"]), 8, batches)
    for info in weighed.infos[:4]:
        assert info.loss == info.cross_entropy
    assert [info.loss for info in weighed.infos[:4]] == [info.loss for info in plain.infos[:4]]
    assert weighed.infos[4].loss != plain.infos[4].loss


@pytest.mark.parametrize(
    ("head", "watched"),
    [("own", "bottom.1.kernel"), ("d3", "head.generator.layers.0.shared.kernel")],
)
@pytest.mark.slow
def test_gradnorm_sees_the_gradient_norms_of_the_scenarios_mean_losses(
    schema, config, batch, head, watched
):
    """In its first step Adam moves by the gradient's sign; its moments hold the norms."""
    config = with_adapter(config, AdapterConfig("gradnorm", "scenario_sum"), head)
    config = config.changed(gradnorm=GradNormOptions())
    model = build_model(schema, config)
    assert build_adapter(config, model, 4).watched == watched
    batch = batch._replace(scenario=np.where(batch.scenario == 1, 0, batch.scenario))
    trained = train(schema, config, 8, [batch])
    init = trained.trainer.init()
    real = jax.tree.map(lambda column: column[np.asarray(batch.mask)], batch)

    def mean_loss(params, scenario):
        output, _ = model.apply(params, init.model_state, real, Mode(train=True))
        losses = binary_cross_entropy(output.logits, jnp.asarray(real.label))
        return losses[real.scenario == scenario].mean()

    differentiate = jax.jit(jax.grad(mean_loss), static_argnums=1)
    gradients = [named_leaves(differentiate(init.params, s).network) for s in (0, 2)]
    expected = [np.linalg.norm(gradient[watched]) for gradient in gradients]
    # After one step the first moment is a tenth of the gradient, which is ± the norm.
    moment = np.asarray(trained.state.adapter_state.adam.mu)
    np.testing.assert_allclose(np.abs(moment[[0, 2]]) * 10, expected, rtol=2e-5)
    assert moment[1] == 0
    assert trained.state.adapter_state.value[1] == 1


def test_uncertainty_learns_at_the_runs_rate_without_decay(schema, tiny, batch):
    optimizer = dataclasses.replace(tiny.optimizer, learning_rate=0.03, weight_decay=9.0)
    config = with_adapter(tiny, ADAPTERS["uncertainty"], optimizer=optimizer)
    eta = train(schema, config, 8, [batch]).state.adapter_state.value
    np.testing.assert_allclose(np.abs(eta), 0.03, rtol=1e-4)


def names_of(schema, config):
    return build_model(schema, config).declared.params.network


@pytest.mark.parametrize(
    ("model", "d3", "expected"),
    [
        ({"backbone": "mmoe", "head": "own"}, {}, "experts.0.kernel"),
        ({"head": "own"}, {}, "bottom.1.kernel"),
        ({}, {"parts": "d1"}, "bottom.1.kernel"),
        ({"backbone": "mmoe"}, {}, "head.generator.layers.0.shared.kernel"),
        ({"backbone": "plain"}, {"form": "official", "head_layers": (4,)}, "shared"),
        ({}, {"form": "official", "head_layers": (4,)}, "head.shared"),
    ],
)
def test_the_default_watched_kernel(schema, config, model, d3, expected):
    changed = config.changed(
        model=dataclasses.replace(config.model, **model),
        d3=dataclasses.replace(config.d3, **d3),
    )
    network = names_of(schema, changed)
    assert default_watched(network) == expected
    assert find_watched(network, "") == expected


def test_a_watched_parameter_may_be_named_but_must_exist(schema, config):
    network = names_of(schema, with_adapter(config, AdapterConfig()))
    assert find_watched(network, "bottom.0.kernel") == "bottom.0.kernel"
    with pytest.raises(
        ConfigError,
        match=r"gradnorm.watched is 'bottom.7.kernel', which is no parameter of "
        "the network; use --gradnorm.watched with one of bottom.0.kernel, bottom.0.bias",
    ):
        find_watched(network, "bottom.7.kernel")
    plain = ModelConfig("plain", "own", 4)
    network = names_of(schema, config.changed(model=plain))
    with pytest.raises(
        ConfigError,
        match=r"no shared kernel that gradnorm could watch by default; "
        "name one of its parameters with --gradnorm.watched: 0.kernel, 0.bias",
    ):
        default_watched(network)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            ADAPTERS["dwa"],
            r"adapter dwa and D3's balance \(parts d3\) both weigh rows; use --parts",
        ),
        (ADAPTERS["gradnorm"], "adapter gradnorm and D3's balance .* both weigh rows; use --parts"),
        (
            AdapterConfig("none", "scenario_sum"),
            "aggregation scenario_sum and D3's balance .* both",
        ),
    ],
)
def test_d3s_balance_goes_with_no_other_adapter(schema, config, adapter, message):
    config = with_adapter(config, adapter, head="d3", parts="d3")
    with pytest.raises(ConfigError, match=message):
        build_adapter(config, build_model(schema, config), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"adapter": "gradnorm"},
            "gradnorm weighs each scenario's mean loss, which aggregation ro",
        ),
    ],
)
def test_a_pair_that_can_not_be_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DWAOptions, {"period_steps": -1}, "dwa.period_steps is -1; it must be between 0 and"),
        (DTPOptions, {"period_steps": -1}, "dtp.period_steps is -1; it must be between 0 and"),
        (DWAOptions, {"temperature": 0.0}, "dwa.temperature is 0.0; it must be between 0.001 and"),
        (DTPOptions, {"kpi_smoothing": 1.1}, "kpi_smoothing is 1.1; it must be between 0 and 1"),
        (DTPOptions, {"scenario_focus": -1.0}, "scenario_focus is -1.0; it must be between 0 and"),
        (DTPOptions, {"row_focus": -0.1}, "row_focus is -0.1; it must be between 0 and 100"),
        (GradNormOptions, {"asymmetry": math.nan}, "asymmetry is nan; it must be a finite number"),
    ],
)
def test_a_setting_outside_its_range_is_named(kind, change, message):
    with pytest.raises(ConfigError, match=message):
        kind(**change)


def test_the_registry_builds_each_adapter_by_name(schema, tiny):
    states = {
        name: type(build_adapter(with_adapter(tiny, adapter), build_model(schema, tiny), 4).state)
        for name, adapter in ADAPTERS.items()
    }
    assert {name: kind.__name__ for name, kind in states.items()} == {
        "dwa": "DWAState",
        "dtp": "DTPState",
        "gradnorm": "Learned",
        "uncertainty": "Learned",
        "share": "ShareState",
    }
    none = with_adapter(tiny, AdapterConfig())
    assert build_adapter(none, build_model(schema, none), 4).state == unweighted().state
