"""Checkpoints: the state of training as safetensors."""

from collections.abc import Mapping

import optree
from safetensors.torch import save
from torch import Tensor

from fpatch.optim.step import TrainState


def state_bytes(state: TrainState, metadata: Mapping[str, str] | None = None) -> bytes:
    """The tensors of a state as a safetensors file, with this header."""
    leaves = optree.tree_leaves(state.opt_state)
    tensors = {f"params/{n}": v for n, v in state.params.items()} | {"key": state.key}
    tensors |= {f"opt/{i}": leaf for i, leaf in enumerate(leaves)}
    return save(unshared(tensors), dict(metadata or {}))


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as the file format demands."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
