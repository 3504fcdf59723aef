"""What decides the best weights: overall, the scenarios' mean, the worst, or a named one."""

import pytest

from d3jax.config import TrainConfig
from d3jax.errors import ConfigError, TrainingError
from d3jax.training.loop import check_monitor, monitored
from d3jax.training.metrics import Evaluation, Metrics


def group(auc, logloss):
    return Metrics(4, 0.5, auc, logloss, 0.69)


EVALUATION = Evaluation(group(0.7, 0.6), {"home": group(0.9, 0.4), "slot": group(0.5, 0.8)})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.6, True)),
        ({"monitor": "auc"}, (0.7, False)),
        ({"monitor": "macro_auc"}, (0.7, False)),
        ({"monitor": "worst_auc"}, (0.5, False)),
        ({"monitor_scenario": "slot"}, (0.8, True)),
        ({"monitor": "auc", "monitor_scenario": "home"}, (0.9, False)),
    ],
)
def test_the_number_and_its_direction(settings, expected):
    assert monitored(TrainConfig(**settings), EVALUATION) == pytest.approx(expected)


def test_the_macro_mean_is_not_the_overall_auc():
    uneven = Evaluation(group(0.6, 0.6), EVALUATION.scenarios)
    assert monitored(TrainConfig(monitor="macro_auc"), uneven) == (pytest.approx(0.7), False)


@pytest.mark.parametrize("monitor", ["auc", "macro_auc", "worst_auc"])
def test_one_class_everywhere_can_not_be_monitored(monitor):
    nothing = Evaluation(group(None, 0.6), {"home": group(None, 0.6)})
    with pytest.raises(TrainingError, match=f"{monitor} isn't defined on the validation rows"):
        monitored(TrainConfig(monitor=monitor), nothing)


def test_one_class_in_the_named_scenario():
    nothing = Evaluation(group(0.7, 0.6), {"home": group(None, 0.6)})
    config = TrainConfig(monitor="auc", monitor_scenario="home")
    with pytest.raises(TrainingError, match="auc isn't defined on the validation rows of 'home'"):
        monitored(config, nothing)


@pytest.mark.parametrize("monitor", ["macro_auc", "worst_auc"])
def test_a_number_of_all_scenarios_has_no_single_one(monitor):
    with pytest.raises(ConfigError, match=f"monitor {monitor} is of all scenarios, not of 'home'"):
        TrainConfig(monitor=monitor, monitor_scenario="home")


def test_an_unknown_scenario_is_named_before_training():
    check_monitor(TrainConfig(monitor_scenario="slot"), ("home", "slot"))
    with pytest.raises(ConfigError, match="monitor_scenario is 'attic'; the data has home, slot"):
        check_monitor(TrainConfig(monitor_scenario="attic"), ("home", "slot"))
