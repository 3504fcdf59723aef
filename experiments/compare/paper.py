"""The numbers that Jia et al. (AAAI 2024) print, to stand beside ours on their own data.

Only those that could be read without doubt are here: Ali-CCP's rows of Tables 2 and 3.
"""

from __future__ import annotations

from d3jax.batch import Schema

ALI_CCP = {
    "ADI": {"auc": (0.6214, 0.5995, 0.6175), "logloss": (0.1655, 0.1789, 0.1598)},
    "ADI + M2M-WG": {"auc": (0.6230, 0.5978, 0.6204)},
    "ADI + PEPNet-WG": {"auc": (0.6233, 0.5996, 0.6203)},
    "ADI + D1": {"auc": (0.6240, 0.6000, 0.6209)},
    "ADI + D2": {"auc": (0.6248, 0.6018, 0.6221)},
    "ADI + D2 + DWA": {"auc": (0.6156, 0.5942, 0.6124)},
    "ADI + D2 + DTP": {"auc": (0.6229, 0.5952, 0.6122)},
    "ADI + D3": {"auc": (0.6261, 0.6029, 0.6230), "logloss": (0.1651, 0.1784, 0.1594)},
}
"""Method -> metric -> values of scenarios 1, 2 and 3."""

CAVEATS = (
    "The paper doesn't say how many runs its numbers are of, nor their spread.",
    "Its ADC logloss (.24-.27) is worse than answering every row with the click rate (.2027): "
    "rows were left out, or the models are uncalibrated.",
    "Its MovieLens logloss of M2M with D3 (.5589/.5387/.5350) is that of ADI without, "
    "digit for digit.",
    "It calls all improvements significant, yet STAR ties on Ali-CCP (logloss .1600) and "
    "MovieLens (AUC .7876), both in scenario 3, and two logloss values get worse with D3 "
    "(STAR on MovieLens .5249 to .5271, MMoE on ADC .2653 to .2657).",
)
"""Reasons against taking the printed numbers as targets."""

_POSITION = "301"
"""Ali-CCP's field of the ad's position, which is its scenario."""


def printed(schema: Schema, method: str, metric: str) -> tuple[float, ...] | None:
    """The paper's values by scenario, when the data is Ali-CCP and the paper has them."""
    if schema.scenario_field != _POSITION or schema.num_scenarios != 3:
        return None
    return ALI_CCP.get(method, {}).get(metric)
