"""Whether two programs compute the same model: logits, losses, and the gradient of each weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TOLERANCE = 2e-3
"""Of logits and gradients, as a share of the largest; float32 sums in different orders differ."""

LOSS_TOLERANCE = 1e-4
"""Of a loss; the second one comes after a step that magnifies what differs in small gradients."""


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
        if not abs(ours - theirs) <= LOSS_TOLERANCE * abs(theirs)
    ]
    gap = _gap(logits, results["logits"])
    if not gap <= TOLERANCE * np.abs(results["logits"]).max():
        found.append(f"logits differ by up to {gap:.2g}")
    if missing := sorted(wanted.keys() ^ gradients.keys()):
        return [*found, f"only one side has the weights {', '.join(missing)}"]
    # A weight without effect, such as a bias before a batch norm, has rounding for a gradient.
    least = 1e-3 * max(np.abs(wanted[name]).max() for name in wanted)
    for name, gradient in gradients.items():
        theirs = wanted[name].reshape(-1)
        gap = _gap(gradient, theirs)
        if not gap <= TOLERANCE * max(np.abs(theirs).max(), least):
            found.append(f"the gradient of {name} differs by up to {gap:.2g}")
    return found


def _gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max())
