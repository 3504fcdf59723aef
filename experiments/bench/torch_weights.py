"""d3jax's weights in the torch models: copied in, and compared by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bench.torch_models import Embedded


def parameters(model: Embedded) -> Iterator[tuple[str, Tensor, bool]]:
    """d3jax's name, the tensor, and whether that is the transpose of d3jax's array."""
    yield "embedding.table", model.table.weight, False
    for path, module in model.network.named_modules():
        names = {"weight": "weight", "bias": "bias"}
        if isinstance(module, nn.Linear):
            names = {"weight": "kernel", "bias": "bias"}
        elif isinstance(module, nn.BatchNorm1d):
            names = {"weight": "scale", "bias": "offset"}
        for name, tensor in module.named_parameters(recurse=False):
            full = ".".join(filter(None, ("network", path, names.get(name, name))))
            yield (
                RENAMED.get(full, full),
                tensor,
                isinstance(module, nn.Linear) and name == "weight",
            )


RENAMED = {
    "network.generator.kernel.kernel": "network.generator.kernel",
    "network.generator.kernel.bias": "network.generator.kernel_offset",
}
"""The generator's largest layer, which d3jax keeps as an array [R I O] and an offset [I O]."""


def moments(model: Embedded) -> Iterator[tuple[str, Tensor]]:
    """d3jax's name, and the tensor, of each running mean and variance."""
    names = {"running_mean": "mean", "running_var": "variance"}
    for path, buffer in model.network.named_buffers():
        parent, _, name = path.replace(".norm.", ".").rpartition(".")
        if name != "num_batches_tracked":
            yield ".".join(filter(None, ("state", parent, names.get(name, name)))), buffer


@torch.no_grad()
def load(model: Embedded, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the model the weights and moments of d3jax's; raises `KeyError` for one it lacks."""
    for name, tensor, transposed in parameters(model):
        array = torch.from_numpy(arrays[name])
        if transposed:
            array = array.reshape(tensor.shape[1], tensor.shape[0]).T
        tensor.copy_(array.reshape(tensor.shape))
    for name, buffer in moments(model):
        buffer.copy_(torch.from_numpy(arrays[name]).reshape(buffer.shape))


def gradients(model: Embedded) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter's gradient under d3jax's name, flattened in d3jax's order; 0 for none."""
    for name, tensor, transposed in parameters(model):
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        yield name, (gradient.T if transposed else gradient).reshape(-1).cpu().numpy()
