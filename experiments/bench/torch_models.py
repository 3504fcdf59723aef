"""D3 and a plain network in torch, written as a good torch user would.

D3 is the authors' form (Jia et al., AAAI 2024): batch norm and a leaky rectifier after every dense
layer, the generated kernel included, and no gradient from the generator into the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3jax.batch import Schema
from d3jax.config import Config

Answer = tuple[Tensor, Tensor | None]
"""Logits [B], and in training the rows' loss weights [B] where a model has them."""


class Embedded(nn.Module):
    """One table for all fields, and the network after it."""

    def __init__(self, schema: Schema, dim: int, network: nn.Module, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(schema.num_rows, dim, sparse=sparse)
        self.network = network
        self.register_buffer("offset", torch.from_numpy(schema.slot_offset))

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [B N] to embeddings [B N D]."""
        return self.table(ids + self.offset)


class MLP(nn.ModuleList):
    """Dense layers with a rectifier between them, the last one linear."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B I] to [B O]."""
        return rectified(self, hidden)


def rectified(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
    """The layers in turn, a rectifier between them."""
    *inner, last = layers
    for layer in inner:
        hidden = F.relu(layer(hidden))
    return last(hidden)


class Block(nn.Module):
    """Dense, batch norm, leaky rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B I] to [B O]."""
        return F.leaky_relu(self.norm(self.dense(hidden)))


def blocks(widths: Sequence[int]) -> nn.Sequential:
    """Blocks of the given widths, the input's first."""
    return nn.Sequential(*(Block(*pair) for pair in pairwise(widths)))


class D3(nn.Module):
    """The D3 head on the embeddings of N fields (Eq. 6-18)."""

    def __init__(self, fields: int, config: Config) -> None:
        super().__init__()
        dim, per_field, width = config.model.embedding_dim, config.d3.field_hidden, config.d3.width
        flat, units = fields * dim, fields * per_field
        self.width, self.balance = width, config.balance
        self.attention = nn.ModuleDict(
            {name: nn.Linear(dim, dim) for name in ("query", "key", "value")}
        )
        self.hidden = nn.Module()
        self.hidden.field_kernel = nn.Parameter(torch.empty(fields, dim, per_field))
        self.hidden.field_bias = nn.Parameter(torch.empty(fields, per_field))
        self.hidden.mix = nn.Linear(units, units)
        sizes = {"field": units, "mix": units, "kernel": flat * width, "bias": width}
        self.norms = nn.ModuleDict({name: nn.BatchNorm1d(n) for name, n in sizes.items()})
        self.generator = nn.ModuleDict(
            {"kernel": nn.Linear(units, flat * width), "bias": nn.Linear(units, width)}
        )
        self.shared = nn.Parameter(torch.empty(flat, width))
        self.gate = blocks((flat, *config.d3.gate_layers, 2))
        self.tail = blocks((width, *config.d3.head_layers))
        self.output = nn.Linear((width, *config.d3.head_layers)[-1], 1)

    def forward(self, x: Tensor, scenario: Tensor) -> Answer:
        """Embeddings [B N D] to logits and loss weights."""
        selected, attention = self.select(x)
        kernel, bias = self.generate(selected.detach())
        flat = x.flatten(1)
        gate = self.gate(flat).softmax(1)
        # The gate's numbers scale the input, which is far smaller than the kernels are.
        scaled = (flat * gate.prod(1, keepdim=True)).unsqueeze(1)
        hidden = torch.bmm(scaled, kernel * self.shared).squeeze(1) + bias
        logits = self.output(self.tail(hidden)).squeeze(1)
        return logits, self.weigh(attention, gate) if self.training else None

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fields mixed by attention, and the attention [B N N] (Eq. 6-8)."""
        query, key, value = (self.attention[name](x) for name in ("query", "key", "value"))
        attention = torch.bmm(query, key.transpose(1, 2)).softmax(2)
        return torch.bmm(attention, value) + value, attention

    def generate(self, selected: Tensor) -> tuple[Tensor, Tensor]:
        """Every row's kernel [B I O] and bias [B O] (Eq. 9-10)."""
        hidden = torch.einsum("bnd,ndh->bnh", selected, self.hidden.field_kernel)
        hidden = self.normalized("field", (hidden + self.hidden.field_bias).flatten(1))
        hidden = hidden + self.normalized("mix", self.hidden.mix(hidden))
        kernel = self.normalized("kernel", self.generator["kernel"](hidden))
        bias = self.normalized("bias", self.generator["bias"](hidden))
        return kernel.unflatten(1, (-1, self.width)), bias

    def normalized(self, name: str, values: Tensor) -> Tensor:
        """Batch norm and the leaky rectifier."""
        return F.leaky_relu(self.norms[name](values))

    @torch.no_grad()
    def weigh(self, attention: Tensor, gate: Tensor) -> Tensor:
        """The loss weights of the rows, as the authors compute them (Eq. 15-18)."""
        balance, mean = self.balance, attention.mean(1)
        entropy = -(mean * torch.log(mean + 1e-9)).sum(1)
        centred = (entropy - entropy.mean()) / (2 * entropy.std(correction=0))
        complexity = (centred + 0.5).clamp(balance.lower, balance.upper)
        by_complexity = balance.complexity_shift + balance.complexity_scale * complexity
        return by_complexity * (balance.specificity_shift + balance.specificity_scale * gate[:, 0])


class Plain(nn.ModuleList):
    """Dense layers on all embeddings side by side."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor, scenario: Tensor) -> Answer:
        """Embeddings [B N D] to logits."""
        return rectified(self, x.flatten(1)).squeeze(1), None
