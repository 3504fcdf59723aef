"""What counts as the same model."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.bench.agreement import disagreements

RESULTS = {"logits": np.array([2.0, -1.0]), "losses": np.array([0.7, 0.6])}
GRADIENTS = {"kernel": np.array([[1.0, -3.0], [0.5, 0.0]]), "dead": np.array([1e-7, 0.0])}


def compared(
    logits: np.ndarray = RESULTS["logits"],
    losses: np.ndarray = RESULTS["losses"],
    **changed: np.ndarray,
) -> list[str]:
    ours = {name: gradient.reshape(-1) for name, gradient in (GRADIENTS | changed).items()}
    return disagreements(RESULTS, GRADIENTS, logits, losses, ours)


def test_rounding_is_no_difference() -> None:
    assert compared() == []
    assert compared(RESULTS["logits"] + 1e-3, RESULTS["losses"] * (1.00005, 1.0005)) == []
    assert compared(kernel=GRADIENTS["kernel"] + 0.05, dead=np.array([-1e-5, 1e-5])) == []


@pytest.mark.parametrize("wrong", [np.nan, 2.1])
def test_logits(wrong: float) -> None:
    (line,) = compared(logits=np.array([wrong, -1.0]))
    assert line.startswith("logits differ by up to")


@pytest.mark.parametrize(("step", "wrong"), [(1, 0.7005), (2, 0.61)])
def test_losses(step: int, wrong: float) -> None:
    losses = RESULTS["losses"].copy()
    losses[step - 1] = wrong
    (line,) = compared(losses=losses)
    assert line == f"loss of step {step}: {wrong:.6f}, the reference has {0.8 - step / 10:.6f}"


def test_gradients() -> None:
    assert compared(kernel=1.1 * GRADIENTS["kernel"]) == ["the gradient of kernel is 10.0% off"]
    (line,) = compared(kernel=GRADIENTS["kernel"].T)
    assert line == f"the gradient of kernel is {3.5 * 2**0.5 / 10.25**0.5:.1%} off"
    (line,) = compared(dead=np.array([0.1, 0.0]))
    assert line.startswith("the gradient of dead is")


def test_gradient_that_is_not_finite() -> None:
    assert compared(kernel=GRADIENTS["kernel"] * np.nan) == ["the gradient of kernel is nan% off"]


def test_missing_weights() -> None:
    assert compared(extra=np.zeros(2)) == ["only one side has the weights extra"]
