"""The adaptive form begins as its shared network, and computes its equations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d3jax
from d3jax.adaptive import d3_adaptive
from d3jax.base import EVALUATION, Inputs, Mode, Sizes
from d3jax.errors import ConfigError
from d3jax.heads import D3Options, dense_head
from d3jax.layers.normalization import MOMENTUM
from d3jax.parameters import initialize

B, N, D, H, S, WIDTH = 7, 3, 4, 2, 2, 5
CONFIG = D3Options(form="adaptive", field_hidden=H, width=6, head_layers=(3,))


def inputs() -> tuple[np.ndarray, Inputs]:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.03, (B, N, D)).astype(np.float32)
    hidden = rng.normal(size=(B, WIDTH)).astype(np.float32)
    scenario = rng.integers(0, S, B).astype(np.int32)
    mask = np.arange(B) < B - 2
    return hidden, Inputs(jnp.asarray(x), jnp.asarray(scenario), jnp.asarray(mask))


def head(parts: Any = "d3", moved: float = 0.3) -> tuple[Any, Any, Any]:
    """The head with parameters moved off their start by noise, so that no term hides."""
    made = d3_adaptive(D3Options(**{**vars(CONFIG), "parts": parts}))
    params, state = initialize(tuple(made.declare(Sizes(N, D, S), WIDTH)), jax.random.key(0))
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda a: a + np.float32(rng.normal(0, moved, a.shape)), params)
    return made, noisy, state


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def reference(params: Any, mean_square: np.ndarray, hidden: np.ndarray, rows: Inputs) -> Any:
    """Logits, attention and own share in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, s = np.asarray(rows.x, np.float64), np.asarray(rows.scenario)
    x = x / np.sqrt(mean_square)[None, :, None]
    logits = p.selection.query[s] @ p.selection.key.T + (x * p.selection.value).sum(-1)
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    selected = x * (N * attention)[..., None]
    units = np.stack([selected[:, f] @ p.hidden.field_kernel[f] for f in range(N)], 1)
    units = (units + p.hidden.field_bias).reshape(B, -1)
    mixed = np.maximum(units @ p.hidden.mix.kernel + p.hidden.mix.bias, 0)
    units = np.maximum(units + mixed, 0)
    values, shares = np.asarray(hidden, np.float64), []
    if p.entry is not None:
        values = values * 2 * sigmoid(p.entry[s])
    for layer in p.layers:
        scores = units @ layer.row.kernel + layer.row.bias
        if layer.scenario is not None:
            scores = scores + layer.scenario[s]
        factors = 2 * sigmoid(scores)
        shares.append(np.abs(factors - 1).mean(-1))
        values = np.maximum(values @ layer.shared.kernel + layer.shared.bias, 0) * factors
    return (values @ p.output.kernel + p.output.bias)[:, 0], attention, np.mean(shares, 0)


@pytest.mark.parametrize("parts", ["d1", "d2", "d3"])
@pytest.mark.parametrize("train", [False, True])
def test_the_equations(parts: str, train: bool) -> None:
    made, params, state = head(parts)
    hidden, rows = inputs()
    mode = Mode(train=True) if train else EVALUATION
    output, after = made.apply(params, state, jnp.asarray(hidden), rows, mode)
    x, mask = np.asarray(rows.x, np.float64), np.asarray(rows.mask)
    batch = (x[mask] ** 2).mean((0, 2))
    logits, attention, own = reference(params, batch if train else np.ones(N), hidden, rows)
    np.testing.assert_allclose(output.logits, logits, rtol=2e-4, atol=2e-4)
    received = jax.nn.softmax(output.attention).mean(-2)
    np.testing.assert_allclose(received, attention, rtol=2e-4)
    expected = MOMENTUM + (1 - MOMENTUM) * batch if train else np.ones(N)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    if parts == "d1":
        assert output.gate is None
    else:
        np.testing.assert_allclose(output.gate, np.stack([own, 1 - own], -1), rtol=1e-3, atol=1e-5)


def test_it_begins_as_its_shared_network() -> None:
    made, params, state = head(moved=0.0)
    hidden, rows = inputs()
    output, _ = made.apply(params, state, jnp.asarray(hidden), rows, Mode(train=True))
    layers = (*(layer.shared for layer in params.layers), params.output)
    plain, _ = dense_head((6, 3)).apply(layers, (), jnp.asarray(hidden), rows, EVALUATION)
    np.testing.assert_array_equal(output.logits, plain.logits)
    np.testing.assert_array_equal(output.gate, [[0.0, 1.0]] * B)
    spread = np.asarray(jax.nn.softmax(output.attention)).std(-1)
    assert spread.max() > 0.01, "attention is not even from the first step on"


def test_no_gradient_reaches_the_embeddings_through_what_adapts() -> None:
    made, params, state = head()
    hidden, rows = inputs()

    def total(x: Any) -> Any:
        output, _ = made.apply(params, state, jnp.asarray(hidden), rows._replace(x=x), EVALUATION)
        return output.logits.sum()

    assert np.abs(np.asarray(jax.grad(total)(rows.x))).max() == 0


def test_a_batch_without_real_rows_leaves_the_moments() -> None:
    made, params, state = head()
    hidden, rows = inputs()
    none = rows._replace(mask=jnp.zeros(B, bool))
    _, after = made.apply(params, state, jnp.asarray(hidden), none, Mode(train=True))
    np.testing.assert_allclose(after, np.ones(N), rtol=1e-6)


def test_the_door_makes_every_form() -> None:
    sizes = Sizes(N, D, S)
    names = {
        form: type(d3jax.d3(form=form, width=6).declare(sizes, WIDTH).params).__name__
        for form in ("text", "official", "adaptive")
    }
    assert names == {
        "text": "GeneratedHeadParams",
        "official": "OfficialParams",
        "adaptive": "AdaptiveParams",
    }
    with pytest.raises(ConfigError, match="tail is given, which form adaptive doesn't read"):
        d3jax.d3(form="adaptive", tail=dense_head())
    with pytest.raises(ConfigError, match="the adaptive form is float32 throughout; use --form"):
        d3jax.d3(form="adaptive", precision="bf16")
