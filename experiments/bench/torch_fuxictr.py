"""A plain network as users of FuxiCTR get it, trained as the package does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from d3jax.batch import Batch, Schema
from d3jax.config import Config
from experiments.bench.timing import OneByOne


class FuxiDNN(BaseModel):
    """The plain network, of FuxiCTR's parts."""

    def __init__(self, feature_map: FeatureMap, config: Config, folder: Path) -> None:
        super().__init__(feature_map, verbose=0, model_root=str(folder), metrics=["AUC"])
        dim = config.model.embedding_dim
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.mlp = MLP_Block(
            input_dim=feature_map.num_fields * dim,
            hidden_units=list(config.model.bottom_layers),
            output_dim=1,
            output_activation=self.output_activation,
        )
        self.compile("adam", "binary_crossentropy", lr=config.optimizer.learning_rate)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities [B 1]."""
        embedded = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.mlp(embedded)}


class FuxiRunner(OneByOne):
    """FuxiCTR's own training step on that network."""

    def __init__(self, schema: Schema, config: Config) -> None:
        feature_map = FeatureMap("made-up", "")
        for field in schema.fields:
            feature_map.features[field.name] = {
                "source": "",
                "type": "categorical",
                "vocab_size": field.size,
            }
        feature_map.labels, feature_map.num_fields = ["label"], schema.num_fields
        self.names = [field.name for field in schema.fields]
        self.model = FuxiDNN(feature_map, config, Path(tempfile.gettempdir()))
        self.model._max_gradient_norm = 10.0

    def train(self, batch: Batch) -> None:
        """One step; the package sets the clipping norm, 10 by default, when its `fit` starts."""
        self.model.train()
        self.model.train_step(self._inputs(batch))

    @torch.no_grad()
    def score(self, batch: Batch) -> np.ndarray:
        """Probabilities."""
        return self.model.eval()(self._inputs(batch))["y_pred"].numpy()

    def wait(self) -> None:
        """Nothing is ever under way."""

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        columns = dict(zip(self.names, torch.from_numpy(batch.ids).unbind(1), strict=True))
        return columns | {"label": torch.from_numpy(batch.label)}
