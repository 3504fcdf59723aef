"""Proof that two programs compute the same model: logits, losses, each weight's gradient.

Float32 sums in different orders differ, and where that puts a rectifier's input on the other side
of 0, a row's share of the gradient jumps. So gradients are compared as vectors, which one row of
many hardly turns, and a wrong formula does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

LOGIT_TOLERANCE = 2e-3
"""The tolerance, as a share of the largest logit."""

LOSS_TOLERANCES = (1e-4, 1e-3)
"""The tolerances of the first loss, and of that after a step, which magnifies differences."""

GRADIENT_TOLERANCE = 0.05
"""Length of the difference over the length of the gradient of one weight."""

NEGLIGIBLE = 1e-3
"""Share of the longest gradient; what is shorter, as that of a bias before a batch norm, may be
rounding alone."""


def disagreements(
    results: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    logits: np.ndarray,
    losses: np.ndarray,
    gradients: Mapping[str, np.ndarray],
) -> list[str]:
    """A line for each thing that differs, none when the programs agree.

    `results` holds the reference's logits and losses, `wanted` its gradients by name.
    """
    found = [
        f"loss of step {step}: {ours:.6f}, the reference has {theirs:.6f}"
        for step, (ours, theirs) in enumerate(zip(losses, results["losses"], strict=True), 1)
        if not abs(ours - theirs) <= LOSS_TOLERANCES[step - 1] * abs(theirs)
    ]
    gap = float(np.abs(logits - results["logits"]).max())
    if not gap <= LOGIT_TOLERANCE * np.abs(results["logits"]).max():
        found.append(f"logits differ by up to {gap:.2g}")
    if missing := sorted(wanted.keys() ^ gradients.keys()):
        return [*found, f"only one side has the weights {', '.join(missing)}"]
    apart = gradient_gaps(wanted, gradients)
    return found + [
        f"the gradient of {name} is {gap:.1%} off"
        for name, gap in apart.items()
        if not gap <= GRADIENT_TOLERANCE
    ]


def gradient_gaps(
    wanted: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """By name, how far a gradient is from the wanted one as a share of that one's length."""
    theirs = {name: wanted[name].reshape(-1) for name in wanted}
    lengths = {name: float(np.linalg.norm(gradient)) for name, gradient in theirs.items()}
    least = NEGLIGIBLE * max(lengths.values())
    return {
        name: float(np.linalg.norm(gradient - theirs[name])) / max(lengths[name], least)
        for name, gradient in gradients.items()
    }
