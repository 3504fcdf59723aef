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
    assert compared(RESULTS["logits"] + 1e-3, RESULTS["losses"] * 1.00005) == []
    assert compared(kernel=GRADIENTS["kernel"] + 5e-3, dead=np.array([-1e-7, 1e-7])) == []


@pytest.mark.parametrize("wrong", [np.nan, 2.1])
def test_logits(wrong: float) -> None:
    (line,) = compared(logits=np.array([wrong, -1.0]))
    assert line.startswith("logits differ by up to")


def test_losses() -> None:
    assert compared(losses=np.array([0.7, 0.61])) == [
        "loss of step 2: 0.610000, the reference has 0.600000"
    ]


def test_gradients() -> None:
    assert compared(kernel=GRADIENTS["kernel"].T) == ["the gradient of kernel differs by up to 3.5"]
    assert compared(dead=np.array([0.1, 0.0])) == ["the gradient of dead differs by up to 0.1"]


def test_missing_weights() -> None:
    assert compared(extra=np.zeros(2)) == ["only one side has the weights extra"]
