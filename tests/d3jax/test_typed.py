"""Every setting of every dataclass that is read from JSON: the wrong type is refused by name, the
right one comes back as it was."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.batch import Field, Schema
from d3jax.config import Config
from d3jax.errors import CheckpointError, ConfigError, DataError
from d3jax.registry import ADAPTERS, BACKBONES, HEADS, section_names
from d3jax.training.loop import Progress
from d3jax.typed import from_json, parse_json

SECTIONS = {name: type(getattr(Config(), name)) for name in (*Config().shared, *section_names())}
SETTINGS = {
    f"{section}.{field.name}": get_type_hints(kind)[field.name]
    for section, kind in SECTIONS.items()
    for field in fields(kind)
}

NAMED = {"model.backbone": BACKBONES, "model.head": HEADS, "adapter.adapter": ADAPTERS}

BOOLEANS = (True, False)
WHOLE = (0, 3, -1, 10**6)
BROKEN = (1.5, -0.25, 3.0)
BEYOND = (2**63, -(2**63), 10**400)
ENDLESS = (math.nan, math.inf, -math.inf)
TEXTS = ("false", "3", "1.5", "", "null", "no choice")
LISTS = ([], [1], ["3"], [1.5], [True], [None], [[1]], [2**63])
OTHERS = (None, {}, {"a": 1})
EVERYTHING = (*BOOLEANS, *WHOLE, *BROKEN, *BEYOND, *ENDLESS, *TEXTS, *LISTS, *OTHERS)


def right(kind: Any) -> tuple[Any, ...]:
    """Which of `EVERYTHING` an annotation takes."""
    if kind is bool:
        return BOOLEANS
    if kind is int:
        return WHOLE
    if kind is float:
        return (*WHOLE, *BROKEN)
    if kind is str:
        return TEXTS
    if kind == tuple[int, ...]:
        return ([], [1])
    if kind == tuple[str, ...]:
        return ([], ["3"])
    assert str(kind).startswith("typing.Literal"), kind
    return ()


def wrong(kind: Any) -> list[Any]:
    """The rest; 1, True and 1.0 are equal, but not the same."""
    taken = {repr(value) for value in right(kind)}
    return [value for value in EVERYTHING if repr(value) not in taken]


def nested(name: str, value: Any) -> dict[str, Any]:
    section, key = name.split(".")
    return {section: {key: value}}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_wrong_type_is_refused_by_name_value_and_cure(name: str) -> None:
    for value in wrong(SETTINGS[name]):
        with pytest.raises(ConfigError, match=f"^{re.escape(name)} is .*; it must be ") as error:
            Config.from_json(nested(name, value))
        assert "Traceback" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_right_type_comes_back_or_is_refused_for_its_range(name: str) -> None:
    section, key = name.split(".")
    lists = (tuple[int, ...], tuple[str, ...])
    choices = () if SETTINGS[name] in lists else get_args(SETTINGS[name])
    values = (*right(SETTINGS[name]), *choices)
    if name in NAMED:  # of the texts those that a part is called; test_registry has the others
        values = tuple(NAMED[name].names())
    for value in values:
        try:
            config = Config.from_json(nested(name, value))
        except ConfigError as error:
            said = str(error)
        else:
            assert getattr(getattr(config, section), key) == (
                tuple(value) if isinstance(value, list) else value
            )
            assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
            continue
        assert not re.search("it must be (an?|true|text|one) ", said)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"train": {"deterministic": "false"}},
            "train.deterministic is 'false'; it must be true o",
        ),
        ({"train": {"epochs": True}}, "train.epochs is True; it must be an integer of at most 64"),
        ({"train": {"epochs": 1.5}}, "train.epochs is 1.5; it must be an integer of at most 64"),
        (
            {"train": {"evaluate_every": "1"}},
            "train.evaluate_every is '1'; it must be a finite num",
        ),
        ({"balance": {"minimum_std": math.inf}}, "balance.minimum_std is inf; it must be a finite"),
        ({"d3": {"gate_layers": [6, "4"]}}, "d3.gate_layers is [6, '4']; it must be a list of int"),
        ({"d3": {"gate_layers": 6}}, "d3.gate_layers is 6; it must be a list of integers"),
        ({"d3": {"parts": ["d3"]}}, "d3.parts is ['d3']; it must be one of d1, d2, d3"),
        ({"gradnorm": {"watched": None}}, "gradnorm.watched is None; it must be text"),
        ({"train": [1]}, "train is [1]; it must be an object"),
        ({"train": None}, "train is None; it must be an object"),
        ([], "the whole is []; it must be an object"),
        ("{}", "the whole is '{}'; it must be an object"),
        (
            {"trian": {}},
            "trian is unknown to this d3jax (did you mean train?); it knows adaptdhm, ",
        ),
        ({"mmoe": {"zzz": 1}}, "mmoe.zzz is unknown to this d3jax; it knows experts, layers, one_"),
    ],
)
def test_what_is_no_configuration_says_where_and_what_to_write(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        Config.from_json(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(SETTINGS)), value=JSON)
def test_any_json_in_any_setting_is_taken_as_it_is_or_refused(name: str, value: Any) -> None:
    section, key = name.split(".")
    try:
        config = Config.from_json(nested(name, value))
    except ConfigError:
        return
    read = getattr(getattr(config, section), key)
    assert type(read) is (tuple if isinstance(value, list) else type(value))
    assert read == (tuple(value) if isinstance(value, list) else value)


@given(value=JSON)
def test_any_json_in_the_place_of_a_section_or_of_all_is_refused_or_read(value: Any) -> None:
    for whole in (value, {"train": value}, {"config": value}):
        try:
            assert isinstance(Config.from_json(whole), Config)
        except ConfigError:
            continue


def built(kind: type, values: dict[str, Any]) -> Any:
    """An instance made as outside the tests, whose import hook would check the types first."""
    made = object.__new__(kind)
    inspect.unwrap(kind.__init__)(made, **values)
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_wrong_type_in_code_is_refused_by_name_too(name: str) -> None:
    section, key = name.split(".")
    kind = SECTIONS[section]
    for value in wrong(SETTINGS[name]):
        with pytest.raises(ConfigError, match=rf"^({section}\.)?{key} is .*; it must be "):
            built(kind, {key: value})
    with pytest.raises(ConfigError, match=r"^train is 'fast'; it must be an object$"):
        built(Config, {"train": "fast"})


def test_a_list_in_code_is_told_to_be_a_tuple() -> None:
    kind = type(Config().d3)
    with pytest.raises(ConfigError, match=r"gate_layers is \[6\]; it must be a tuple of integers"):
        built(kind, {"gate_layers": [6]})


SCHEMA = Schema((Field("user", 3), Field("tags", 4, slots=2)), ("a", "b"), user_field="user")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": [{"name": "user", "size": "3"}]}, "schema.fields.0.size is '3'; it must be an"),
        ({"fields": [{"name": "user", "size": True}]}, "schema.fields.0.size is True; it must be"),
        ({"fields": [{"name": 7, "size": 3}]}, "schema.fields.0.name is 7; it must be text"),
        ({"fields": [{"size": 3}]}, "schema.fields.0.name is missing; it must be text"),
        ({"fields": [{"name": "user", "size": 3, "slot": 1}]}, "fields.0.slot is unknown to this"),
        ({"fields": {"user": 3}}, "schema.fields is {'user': 3}; it must be a list of objects"),
        ({"fields": ["user"]}, "schema.fields.0 is 'user'; it must be an object"),
        ({"scenarios": "ab"}, "schema.scenarios is 'ab'; it must be a list of texts"),
        ({"scenarios": ["a", 1]}, "schema.scenarios is ['a', 1]; it must be a list of texts"),
        ({"user_field": 0}, "schema.user_field is 0; it must be text or null"),
        ({"fields": []}, "a schema needs at least one field and one scenario"),
    ],
)
def test_a_schema_is_typed_as_settings_are(change: dict[str, Any], message: str) -> None:
    value = json.loads(json.dumps(SCHEMA.to_json()))
    assert Schema.from_json(value) == SCHEMA
    with pytest.raises(DataError, match=re.escape(message)):
        Schema.from_json(value | change)


@given(value=JSON, place=st.sampled_from(["fields", "scenarios", "user_field", "name", "size"]))
def test_any_json_in_a_schema_is_read_or_refused(value: Any, place: str) -> None:
    written = json.loads(json.dumps(SCHEMA.to_json()))
    target = written if place in written else written["fields"][0]
    target[place] = value
    try:
        assert json.loads(json.dumps(Schema.from_json(written).to_json())) == written
    except DataError:
        return


def test_progress_of_a_checkpoint_is_typed_too() -> None:
    progress = Progress(step=3, best_step=2, best_metric=0.5, loss_sum=1.25, loss_count=2)
    assert Progress.from_json(progress.to_json()) == progress
    for key in asdict(progress):
        with pytest.raises(CheckpointError, match=rf"progress\.{key} is 'x'; it must be "):
            Progress.from_json(progress.to_json() | {key: "x"})


@dataclass(frozen=True)
class Inner:
    size: int = 0


@dataclass(frozen=True)
class Outer:
    many: tuple[Inner, ...]
    perhaps: Inner | None = None
    counts: dict[str, int] | None = None
    place: Literal[1, "open"] = 1
    anything: Any = None


def test_a_dataclass_of_dataclasses_is_read_by_its_annotations() -> None:
    value = {"many": [{"size": 2}, {}], "perhaps": {"size": 1}, "counts": {"a": 1}, "place": "open"}
    read = from_json(Outer, value | {"anything": [None]})
    assert read == Outer((Inner(2), Inner()), Inner(1), {"a": 1}, "open", [None])
    assert from_json(Outer, {"many": [], "perhaps": None}) == Outer(())
    for change, message in {
        ("perhaps", 3): "perhaps is 3; it must be an object or null",
        ("counts", 3): "counts is 3; it must be an object of integers or null",
        ("place", True): "place is True; it must be one of 1, open",
    }.items():
        with pytest.raises(ConfigError, match=f"^{message}$"):
            from_json(Outer, {"many": [], **dict([change])})
    with pytest.raises(ConfigError, match=r"^perhaps\.size is 'x'; it must be an integer"):
        from_json(Outer, {"many": [], "perhaps": {"size": "x"}})
    with pytest.raises(ConfigError, match=r"^counts is {'a': 'x'}; it must be an object of integ"):
        from_json(Outer, {"many": [], "counts": {"a": "x"}})
    assert all(not is_dataclass(each) for each in value.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": {"seed": 1, "seed": 2}}', "the key 'seed' appears twice in one object"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": [-Infinity]}', "-Infinity is no number of JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{", "Expecting property name"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_json_is_read_by_the_letter(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_json(text)
