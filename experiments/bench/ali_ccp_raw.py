"""Made-up Ali-CCP files of any size, and how fast and in how much memory they are prepared.

python -m experiments.bench.ali_ccp_raw --rows 2000000

Ids are Zipf-distributed, about 58 rows share a line of common features, and a line of those holds
about 500 items in four histories, as in the published files (Ma et al., 2018). The label is
independent of all fields: nothing can be learnt from these rows.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

import duckdb
import tyro

from d3jax.console.terminal import Console, Progress
from data_pipelines.prepare import prepare
from data_pipelines.raw.engine import MEMORY, duckdb_engine
from data_pipelines.source import PrepareConfig
from data_pipelines.sources.ali_ccp.published import ali_ccp

ROWS_PER_KEY = 58

POSITIONS = (9351665, 9351666, 9351667)
"""Ids of field 301, made up but for the first; their shares are those of the published rows."""

_MACROS = """
create macro uniform(i, salt) as (hash(hash(i, salt)) >> 11)::double / 9007199254740992.0;
create macro zipf(i, salt, size) as floor(exp(uniform(i, salt) * ln(size + 1)))::bigint;
create macro item(field, id, value) as field || chr(2) || id || chr(3) || value;
create macro present(items) as list_filter(items, lambda x: x is not null);
create macro joined(items) as array_to_string(items, chr(1));
create macro sometimes(i, field, rate, first, size) as
    if(uniform(i, field || 'rate') < rate, item(field, first + zipf(i, field, size), 1.1), null);
create macro several(i, field, first, size, longest) as list_transform(
    range(zipf(i, field || 'length', longest)),
    lambda j: item(field, first + zipf(i * 1009 + j, field, size), round(ln(2 + j % 9), 5)));
"""

_COMMON = """
select
    substr(md5('$split' || k), 1, 16),
    len(items),
    joined(items)
from (
    select k, present(list_concat(
        [
            item('101', k % 240000 + 1, 1.0),
            item('121', 240000 + zipf(k, '121', 97), 1.0),
            item('122', 240100 + zipf(k, '122', 13), 1.0),
            item('124', 240120 + zipf(k, '124', 2), 1.0),
            item('125', 240130 + zipf(k, '125', 7), 1.0),
            sometimes(k, '126', 0.6, 240140, 3),
            item('127', 240150 + zipf(k, '127', 3), 1.0),
            item('128', 240160 + zipf(k, '128', 2), 1.0),
            item('129', 240170 + zipf(k, '129', 4), 1.0)
        ],
        several(k, '109_14', 250000, 9000, 1000),
        several(k, '110_14', 300000, 500000, 1000),
        several(k, '127_14', 900000, 150000, 1000),
        several(k, '150_14', 1200000, 90000, 335)
    )) as items
    from range($keys) as keys(k)
)
"""

_SKELETON = f"""
select i, click, purchase, substr(md5('$split' || i // {ROWS_PER_KEY}), 1, 16),
    len(items), joined(items)
from (
    select
        i,
        (uniform(i, '$split click') < 0.0389)::int as click,
        (uniform(i, '$split purchase') < if(click = 1, 0.0055, 0.00001))::int as purchase,
        zipf(i, '$split ad', 4300000) as ad,
        present(list_concat(
            [
                item('205', 3000000 + ad, 1.0),
                item('206', 7400000 + zipf(ad, '206', 9000), 1.0),
                item('207', 7500000 + zipf(ad, '207', 600000), 1.0),
                item('216', 9000000 + zipf(ad, '216', 300000), 1.0)
            ],
            several(ad, '210', 8200000, 90000, 20),
            [
                sometimes(i, '508', 0.4, 9400000, 9000),
                sometimes(i, '509', 0.2, 9500000, 400000),
                sometimes(i, '702', 0.2, 10000000, 150000)
            ],
            if(uniform(i, '853') < 0.3, several(i, '853', 10200000, 90000, 25), []),
            [item('301', case
                when uniform(i, '301') < 0.378 then {POSITIONS[0]}
                when uniform(i, '301') < 0.3855 then {POSITIONS[1]}
                else {POSITIONS[2]} end, 1.0)]
        )) as items
    from range($rows) as impressions(i)
)
"""


@dataclass(frozen=True)
class AliCCPBench:
    """How many rows to make up, half of them for training, and how to prepare them."""

    rows: int = 2_000_000
    multi_valued: bool = False
    """Keep up to eight values of a multi-valued field instead of the last one."""
    memory: str = MEMORY
    """DuckDB's memory limit."""
    directory: Path | None = None
    """Where to put what is written, a GB for a million rows; the system's folder when None."""
    keep: Path | None = None
    """A folder to make the raw files in and leave them there; used again if they are there."""


def write_raw(directory: Path, rows: int, scratch: Path) -> None:
    """Writes the four files of `rows` impressions in all into `directory`."""
    connection = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(scratch)})
    connection.execute("set enable_progress_bar = false")
    connection.execute(_MACROS)
    half = rows // 2
    sizes = {"rows": half, "keys": -(-half // ROWS_PER_KEY)}
    for split in ("train", "test"):
        for kind, query in (("common_features", _COMMON), ("sample_skeleton", _SKELETON)):
            path = directory / f"{kind}_{split}.csv"
            filled = Template(query).substitute(sizes, split=split)
            connection.execute(
                f"copy ({filled}) to '{path}' (format csv, header false, quote '', escape '')"
            )


def peak_memory() -> float:
    """GB that this process, DuckDB included, has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(bench: AliCCPBench, raw: Path, folder: Path, console: Console) -> float:
    """Seconds from raw files to the prepared directory `folder / "prepared"`."""
    start = time.perf_counter()
    engine = duckdb_engine(folder, bench.memory)
    with Progress(console=console) as bar:
        task = bar.add_task("reading")

        def advance(name: str, index: int, total: int) -> None:
            seconds = time.perf_counter() - start
            bar.console.log(f"{name}: from {seconds:,.0f} s on, {peak_memory():.2f} GB at most")
            bar.update(task, description=name, completed=index, total=total)

        last_value = not bench.multi_valued
        source = ali_ccp(engine, raw, folder, last_value=last_value, progress=advance)
        prepare(source, folder / "prepared", PrepareConfig(min_count=10), progress=advance)
    return time.perf_counter() - start


def make_raw(directory: Path, rows: int, scratch: Path) -> float:
    """Makes the files up in a process of its own, if they aren't there; their size in GB."""
    if not any(directory.glob("*.csv")):
        spawned = multiprocessing.get_context("spawn")
        maker = spawned.Process(target=write_raw, args=(directory, rows, scratch))
        maker.start()
        maker.join()
    return sum(path.stat().st_size for path in directory.glob("*.csv")) / 1e9


def main(bench: AliCCPBench) -> None:
    """Makes raw files up, prepares them, and prints speed and memory."""
    console = Console(log_path=False, width=100)
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        scratch = Path(folder)
        raw = bench.keep or scratch
        size = make_raw(raw, bench.rows, scratch)
        seconds = measure(bench, raw, scratch, console)
    console.print(
        f"{bench.rows:,} rows, {size:.1f} GB of raw files: {seconds:,.0f} s, "
        f"{bench.rows / seconds:,.0f} rows/s, at most {peak_memory():.2f} GB in memory"
    )


if __name__ == "__main__":
    main(tyro.cli(AliCCPBench))
