"""The variants of the speed benchmark: the same models in d3jax and in torch, in several ways.

Every variant is a line of the table. A family holds the variants of one model; those in torch take
their weights from d3jax's reference of the family, and must agree with it before they are timed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from d3jax.config import Config, ModelConfig, OptimizerConfig, TableUpdateName
from d3jax.heads import D3Options
from d3jax.presets import PRESETS

Family = Literal["d3", "plain", "star", "mmoe"]
Side = Literal["d3jax", "torch", "deepctr-torch", "fuxictr"]

SIDES: dict[str, str] = {
    "d3jax": "experiments.bench.jax_side",
    "torch": "experiments.bench.torch_side",
    "deepctr-torch": "experiments.bench.torch_side",
    "fuxictr": "experiments.bench.torch_side",
}
"""The module that runs each side in a process of its own."""

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Makes glibc keep what is freed, in huge pages, so that no step has page faults. By default each
large tensor is mapped anew, and the kernel zeroes it, at every step."""


@dataclass(frozen=True)
class Variant:
    """One way to train and score a model."""

    name: str
    family: Family
    side: Side
    config: Config
    """The model, which the torch sides read their sizes from; the reference's for them."""
    sparse: bool = False
    """torch: the table's gradient is sparse and SparseAdam applies it."""
    tuned: bool = False
    """torch: fused optimizer, and the best number of threads, compiled or not."""
    l2: bool = False
    """deepctr-torch: with the penalty on the whole table that it has by default."""
    allocator: bool = False
    """Run with the settings of `ALLOCATOR`."""
    bf16: bool = False
    """torch: products of bfloat16 factors (autocast); checked in float32. d3jax has it in its
    configuration."""

    @property
    def whole_table(self) -> bool:
        """Return whether a step moves every row of the embedding table."""
        rows_only = self.side == "d3jax" and self.config.optimizer.embedding_update != "dense"
        return not (self.sparse or rows_only)


WIDE_START = ModelConfig(backbone="plain", embedding_init="normal", embedding_scale=0.3)
"""With the authors' tiny initial embeddings the entropies that weigh rows differ by less than
float32 resolves, and no two programs would agree on the loss."""


def dense_table(config: Config) -> Config:
    """With AdamW on all rows of the embedding table, as torch has it."""
    return with_update(config, "dense")


def with_update(config: Config, update: TableUpdateName) -> Config:
    """With another optimizer for the embedding table."""
    return config.changed(optimizer=OptimizerConfig(embedding_update=update))


def reference(family: Family) -> Config:
    """The model that both sides of a family build, rows weighed from the first step on."""
    if family == "d3":
        balance = replace(PRESETS["official"].balance, start_ratio=0.0)
        return dense_table(PRESETS["official"].changed(model=WIDE_START, balance=balance))
    backbone = {"plain": "plain", "star": "star", "mmoe": "mmoe"}[family]
    values = Config(model=replace(WIDE_START, head="own")).to_json()
    return dense_table(
        Config.from_json(values | {"model": values["model"] | {"backbone": backbone}})
    )


def text_d3(rank: int = 0) -> Config:
    """The paper's equations, the generated kernel mixed from `rank` matrices (0: the paper's M)."""
    d3 = D3Options(width=PRESETS["official"].d3.width, rank=rank)
    balance = replace(Config().balance, start_ratio=0.0)
    return dense_table(Config(model=WIDE_START, d3=d3, balance=balance))


def variants(family: Family) -> list[Variant]:
    """All of a family, in the order of the table; torch's tuned one is what ratios refer to."""
    shared = reference(family)
    listed = [Variant("d3jax", family, "d3jax", shared)]
    listed += [Variant("d3jax, allocator set", family, "d3jax", shared, allocator=True)]
    listed += [
        Variant(f"d3jax, {update} table", family, "d3jax", with_update(shared, update))
        for update in TABLE_UPDATES
    ]
    if family == "d3":
        listed += [Variant("d3jax, text form", family, "d3jax", text_d3())]
        listed += [
            Variant(f"d3jax, rank {rank}", family, "d3jax", text_d3(rank)) for rank in (16, 32, 64)
        ]
        fast = with_update(text_d3(32), TABLE_UPDATES[0])
        listed += [Variant(f"d3jax, rank 32, {TABLE_UPDATES[0]} table", family, "d3jax", fast)]
    return listed + _torch_variants(family, shared)


def bf16_variants(family: Family) -> list[Variant]:
    """Those for a GPU, where such products are many times faster."""
    tuned = next(variant for variant in variants(family) if variant.name == TUNED)
    listed = [replace(tuned, name=f"{TUNED}, bf16", bf16=True)]
    if family != "d3":
        return listed
    for rank, name in ((0, "text form"), (32, "rank 32")):
        config = text_d3(rank)
        config = config.changed(d3=replace(config.d3, precision="bf16"))
        listed += [Variant(f"d3jax, {name}, bf16", family, "d3jax", config)]
    return listed


TABLE_UPDATES: tuple[TableUpdateName, ...] = ("lazy_adamw", "adagrad")


def _torch_variants(family: Family, shared: Config) -> list[Variant]:
    plain = Variant("torch, as shipped", family, "torch", shared)
    tuned = replace(plain, name=TUNED, tuned=True, allocator=True)
    listed = [plain, tuned, replace(tuned, name="torch, tuned, sparse table", sparse=True)]
    if family == "plain":
        deepctr = Variant("deepctr-torch DNN", family, "deepctr-torch", shared, l2=True)
        listed += [deepctr, replace(deepctr, name="deepctr-torch DNN, no penalty", l2=False)]
        listed += [Variant("fuxictr DNN", family, "fuxictr", shared)]
    return listed


TUNED = "torch, tuned"
"""The variant that ratios are relative to."""
