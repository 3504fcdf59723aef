from __future__ import annotations

import pytest

from d3jax.names import did_you_mean, nearest

FLAGS = [
    "--learning-rate",
    "--batch-size",
    "--weight-decay",
    "--embedding-decay",
    "--epochs",
    "--embedding-dropout",
    "--mmoe.experts",
    "--m2m.experts",
    "--seed",
    "--seeds",
    "--d3-place",
]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("--lr", ["--learning-rate"]),
        ("--wd", ["--weight-decay"]),
        ("--batchsize", ["--batch-size"]),
        ("--batch_size", ["--batch-size"]),
        ("--learningrate", ["--learning-rate"]),
        ("--lerning-rate", ["--learning-rate"]),
        ("--epoch", ["--epochs"]),
        ("--dropout", ["--embedding-dropout"]),
        ("--decay", ["--weight-decay", "--embedding-decay"]),
        ("--experts", ["--mmoe.experts", "--m2m.experts"]),
        ("--mmoe-expert", ["--mmoe.experts", "--m2m.experts"]),
        ("--music", []),
        ("--", []),
        ("--x", []),
    ],
)
def test_the_nearest_names_are_found_and_none_that_is_far(typed: str, found: list[str]) -> None:
    assert nearest(typed, FLAGS) == found


def test_the_question_names_up_to_three() -> None:
    assert did_you_mean("trian", ["train", "chaos"]) == " (did you mean train?)"
    assert did_you_mean("ab", ["ab-1", "ab-2", "a-b", "a.b"]) == " (did you mean a-b or a.b?)"
    assert did_you_mean("--no-sed", ["--seed", "--no-seed"]) == " (did you mean --no-seed?)"
    assert did_you_mean("music", ["train"]) == ""
