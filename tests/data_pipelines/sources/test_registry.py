"""A data set of somebody else's package is listed, explained and prepared like ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from d3jax.cli import find_verbs, load_verb, parse
from d3jax.console.suggestions import choices_of
from d3jax.errors import ConfigError
from data_pipelines import sources
from data_pipelines.sources import find_sources, load_source, register
from data_pipelines.sources.table import Table
from data_pipelines.workplace import prepare_data_set

OURS = ["adc", "ali-ccp", "kuairand", "movielens-1m", "table"]

MODULE = '''
from dataclasses import dataclass

from data_pipelines import raw
from data_pipelines.source import DataSet, FieldSource, Source


@dataclass(frozen=True, kw_only=True)
class Shop(DataSet):
    """A shop's clicks: one scenario a page."""

    least: int = 0
    """The lowest price."""

    def read(self, place):
        log = raw.read_raw(place.connection, raw.file_of(self.files, "log.csv"), place.scratch)
        raw.check_values(log, {"click": ("[01]", "0 or 1"), "price": ("[0-9]+", "a number")})
        rows = log.table.filter(log.table.price.cast("int64") >= self.least)
        rows = rows.mutate(label=rows.click.cast("int64"), scenario=rows.page.cast("int64"))
        return Source(
            rows=rows,
            fields=(FieldSource("user"), FieldSource("page")),
            scenarios=("home", "cart"),
            scenario_field="page",
            scenario_values={"0": "home", "1": "cart"},
            key=("user", "page"),
            label_rule="click",
            files=log.files,
        )


class NoDataSet:
    pass
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path where a package of the name `shop_data` is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "shop_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "shop_data", raising=False)
    return folder


def install(folder: Path, *lines: str, name: str = "shop_data") -> None:
    """Write the metadata that an installed package has."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[d3jax.sources]", *lines]) + "\n")


def raw_files(folder: Path) -> Path:
    folder.mkdir()
    rows = [f"u{n},{n % 2},{n % 10},{n % 3 // 2}" for n in range(200)]
    (folder / "log.csv").write_text("\n".join(["user,page,price,click", *rows]))
    return folder


def test_ours_are_entry_points() -> None:
    assert list(find_sources()) == OURS
    assert load_source("table") is Table


def test_a_foreign_data_set_has_its_flags_and_is_prepared(package: Path, tmp_path: Path) -> None:
    install(package, "shop = shop_data:Shop")
    choices = choices_of(load_verb("prepare", find_verbs()["prepare"]))
    assert [*choices] == sorted([*OURS, "shop"])
    assert choices["shop"].__doc__ == "A shop's clicks: one scenario a page."
    raw, out = raw_files(tmp_path / "raw"), tmp_path / "out"
    flags = ["--least", "5", "--test-fraction", "0.5"]
    verb = parse(["prepare", "shop", str(raw), str(out), *flags])
    prepared = prepare_data_set(verb.source)
    assert sum(prepared.provenance["rows"].values()) == 100
    assert prepared.schema.scenarios == ("home", "cart")
    assert [field.name for field in prepared.schema.fields] == ["user", "page"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "shop_missing:Shop",
            r"'shop' can't be loaded from shop_missing:Shop \(ModuleNotFoundError: No module "
            r"named 'shop_missing'\); install what is missing, or uninstall shop_data",
        ),
        (
            "shop_data:Mall",
            r"'shop' can't be loaded from shop_data:Mall \(AttributeError: .*'Mall'\); install",
        ),
        (
            "shop_data:NoDataSet",
            "shop_data:NoDataSet, which the data source 'shop' is to be, is no dataclass that "
            "inherits data_pipelines.source.DataSet",
        ),
    ],
)
def test_one_that_cannot_be_loaded_is_told_where_it_is_asked_for(
    entry: str, message: str, package: Path, tmp_path: Path
) -> None:
    install(package, f"shop = {entry}")
    with pytest.raises(ConfigError, match=message):
        parse(["prepare", "shop", "raw", "out", "--least", "5"])
    # It costs the others nothing, and the list of all says why.
    files = [str(tmp_path / "a.csv"), str(tmp_path / "out")]
    verb = parse(["prepare", "table", *files, "--label", "click", "--scenario", "tab"])
    assert isinstance(verb.source, Table)
    choices = choices_of(load_verb("prepare", find_verbs()["prepare"]))
    assert re.search(message, str(choices["shop"].__doc__))


def test_a_name_of_two_packages_is_refused(package: Path) -> None:
    install(package, "table = shop_data:Shop")
    message = r"the data source 'table' is both (shop_data:Shop and data_pip|data_pip.* and shop_d)"
    with pytest.raises(ConfigError, match=message):
        load_source("table")
    assert load_source("adc").__name__ == "ADC"


def test_a_registered_class_is_known_to_the_process(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_registered", {})
    from shop_data import NoDataSet, Shop

    register("shop", Shop)
    verb = parse(["prepare", "shop", "raw", "out", "--least", "7"])
    assert verb.source == Shop(files=Path("raw"), out=Path("out"), least=7)
    with pytest.raises(ConfigError, match="there is a data source 'shop' already; register anoth"):
        register("shop", Shop)
    with pytest.raises(ConfigError, match=r"NoDataSet'>, which the data source 'mall' is to be"):
        register("mall", NoDataSet)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no data source 'tabel' \(did you mean table\?\); ther"):
        load_source("tabel")


def test_help_needs_no_engine() -> None:
    """The flags of all data sets are known before an engine, NumPy or JAX is imported."""
    program = (
        "import sys, data_pipelines.verbs as verbs; verbs.Prepare.flagged(); "
        "print([name for name in ('ibis', 'duckdb', 'pyarrow', 'numpy', 'jax') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
