"""MMoE and STAR in torch, written as a good torch user would, and the choice of a model."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3jax.batch import Schema
from d3jax.config import Config
from experiments.bench.torch_models import D3, MLP, Answer, Embedded, Plain, rectified


class Stacked(nn.Module):
    """S dense layers of one shape."""

    def __init__(self, copies: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(copies, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(copies, outputs)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Each copy's output [S B O] for rows [B I], or for each copy's own rows [S B I]."""
        if self.bias is None:
            return hidden @ self.kernel
        if hidden.ndim == 2:
            hidden = hidden.expand(len(self.kernel), -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(1), hidden, self.kernel)


class MMoE(nn.Module):
    """Experts, a gate and a tower for each scenario (Ma et al., KDD 2018)."""

    def __init__(self, fields: int, scenarios: int, config: Config) -> None:
        super().__init__()
        flat, options = fields * config.model.embedding_dim, config.mmoe
        experts = pairwise((flat, *options.layers))
        towers = pairwise((options.layers[-1], *config.model.tower_layers, 1))
        self.experts = nn.ModuleList(Stacked(options.experts, *pair) for pair in experts)
        self.gates = Stacked(scenarios, flat, options.experts, bias=False)
        self.head = nn.ModuleList(Stacked(scenarios, *pair) for pair in towers)

    def forward(self, x: Tensor, scenario: Tensor) -> Answer:
        """Embeddings [B N D] to logits."""
        flat = hidden = x.flatten(1)
        rows = torch.arange(len(flat))
        for layer in self.experts:
            hidden = F.relu(layer(hidden))
        gate = self.gates(flat)[scenario, rows].softmax(1)
        hidden = torch.einsum("be,ebh->bh", gate, hidden)
        return rectified(self.head, hidden)[scenario, rows].squeeze(1), None


class StarDense(nn.Module):
    """A layer for all scenarios, times and plus each scenario's own."""

    def __init__(self, scenarios: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.own_kernel = nn.Parameter(torch.empty(scenarios, inputs, outputs))
        self.own_bias = nn.Parameter(torch.empty(scenarios, outputs))

    def forward(self, hidden: Tensor, scenario: int) -> Tensor:
        """The rows [R I] of one scenario to [R O]."""
        bias = self.own_bias[scenario] + self.bias
        return torch.addmm(bias, hidden, self.own_kernel[scenario] * self.kernel)


class STAR(nn.Module):
    """Partitioned norm, star-shaped layers, auxiliary network (Sheng et al., CIKM 2021)."""

    def __init__(self, fields: int, scenarios: int, config: Config) -> None:
        super().__init__()
        dim, options = config.model.embedding_dim, config.star
        flat = fields * dim
        self.norm = nn.ModuleDict({"shared": _affine(flat), "own": _affine(scenarios, flat)})
        self.layers = nn.ModuleList(
            StarDense(scenarios, *pair) for pair in pairwise((flat, *options.layers, 1))
        )
        self.scenario = nn.Parameter(torch.empty(scenarios, dim))
        self.auxiliary = MLP((flat + dim, *options.auxiliary, 1))
        self.register_buffer("mean", torch.zeros(scenarios, flat))
        self.register_buffer("variance", torch.ones(scenarios, flat))

    def forward(self, x: Tensor, scenario: Tensor) -> Answer:
        """Embeddings [B N D] to logits; each scenario's rows go through its own layers."""
        flat = x.flatten(1)
        logits = self.auxiliary(torch.cat((flat, self.scenario[scenario]), 1)).squeeze(1)
        for index in range(len(self.scenario)):
            rows = (scenario == index).nonzero().squeeze(1)
            if len(rows):
                logits = logits.index_add(0, rows, self.star(flat[rows], index))
        return logits, None

    def star(self, hidden: Tensor, index: int) -> Tensor:
        """The star-shaped network on the rows [R I] of one scenario."""
        shared, own = self.norm["shared"], self.norm["own"]
        hidden = F.batch_norm(
            hidden,
            self.mean[index],
            self.variance[index],
            shared["scale"] * own["scale"][index],
            shared["offset"] + own["offset"][index],
            training=self.training and len(hidden) > 1,
        )
        *inner, last = self.layers
        for layer in inner:
            hidden = F.relu(layer(hidden, index))
        return last(hidden, index).squeeze(1)


def _affine(*shape: int) -> nn.ParameterDict:
    return nn.ParameterDict({"scale": torch.ones(shape), "offset": torch.zeros(shape)})


def build(schema: Schema, config: Config, sparse: bool = False) -> Embedded:
    """The model that `config` names, its weights not yet set."""
    fields, scenarios = schema.num_fields, schema.num_scenarios
    network: nn.Module
    match config.model.backbone, config.model.head:
        case "plain", "d3":
            network = D3(fields, config)
        case "mmoe", _:
            network = MMoE(fields, scenarios, config)
        case "star", _:
            network = STAR(fields, scenarios, config)
        case _:
            flat = fields * config.model.embedding_dim
            network = Plain((flat, *config.model.bottom_layers, 1))
    return Embedded(schema, config.model.embedding_dim, network, sparse)
