"""A plain network as users of DeepCTR-Torch get it, trained as the package does."""

from __future__ import annotations

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import WDL

from d3jax.batch import Batch, Schema
from d3jax.config import Config
from experiments.bench.timing import OneByOne


class DeepCTRRunner(OneByOne):
    """DeepCTR-Torch's Wide&Deep without its wide part, which leaves the plain network."""

    def __init__(self, schema: Schema, config: Config, l2: bool) -> None:
        columns = [
            SparseFeat(field.name, field.size, embedding_dim=config.model.embedding_dim)
            for field in schema.fields
        ]
        penalty = {} if l2 else {"l2_reg_embedding": 0}
        self.model = WDL([], columns, config.model.bottom_layers, **penalty)
        self.model.compile("adam", "binary_crossentropy")

    def train(self, batch: Batch) -> None:
        """One step, as the package's `fit` takes it."""
        model = self.model.train()
        prediction = model(_floats(batch)).squeeze()
        model.optim.zero_grad()
        loss = model.loss_func(prediction, torch.from_numpy(batch.label), reduction="sum")
        (loss + model.get_regularization_loss() + model.aux_loss).backward()
        model.optim.step()

    @torch.no_grad()
    def score(self, batch: Batch) -> np.ndarray:
        """Probabilities, as the package's `predict` gives them."""
        return self.model.eval()(_floats(batch)).numpy()

    def wait(self) -> None:
        """Nothing is ever under way."""


def _floats(batch: Batch) -> torch.Tensor:
    """The package takes ids as float32."""
    return torch.from_numpy(batch.ids).float()
