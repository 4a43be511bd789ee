"""The layers of a network that is trained: dropout by row keys, batch statistics, and draws that are refused.

`trainable_copy` copies the modules of a network, not their tensors. The copy's tensors are replaced at every
call, so that neither the network nor its buffers are ever written.
"""

import copy
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from fpatch import random

ROW_KEYS = "row_keys"
"""The buffer by which a layer of dropout receives the keys of the rows."""


class Called(nn.Module):
    """A network that also returns its buffers after the call."""

    def __init__(self, model: nn.Module) -> None:
        """Hold the network as `model`."""
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """Call the network."""
        for layer in self.model.modules():
            if isinstance(layer, KeyedDropout):
                layer.calls = 0
        return self.model(*args, **kwargs), dict(self.model.named_buffers())


class KeyedDropout(nn.Module):
    """Dropout whose mask is drawn from the keys of the rows.

    Args:
        name: The name of the layer in its network, which its keys fold in.
        p: The share that is dropped.
        shared_axes: The last axes that share one draw, as the pixels of a channel do in `Dropout2d`.

    References:
        Srivastava et al. (2014), Dropout: a simple way to prevent neural networks from overfitting.
        Tompson et al. (2015), Efficient object localization using convolutional networks (whole channels).
    """

    row_keys: Tensor

    def __init__(self, name: str, p: float, shared_axes: int) -> None:
        super().__init__()
        self.name, self.p, self.shared_axes, self.calls = name, p, shared_axes, 0
        self.stream = zlib.crc32(name.encode())  # computed once: no compiler traces it
        self.register_buffer(ROW_KEYS, torch.zeros(0, 2, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of `x` [b, ...], or [n * b, ...] with the rows of each image one after another."""
        call, self.calls = self.calls, self.calls + 1
        if not self.training or self.p == 0:
            return x
        rows = len(self.row_keys)
        if not rows:
            raise ValueError(
                f"the dropout {self.name!r} has p = {self.p} now, and had 0 when the pipeline was made; make "
                "the network with p > 0"
            )
        if not x.ndim or x.shape[0] % rows:
            raise ValueError(
                f"the dropout {self.name!r} sees {list(x.shape)} in a batch of {rows} rows; it draws by "
                "rows, so put the axis of rows first"
            )
        keys = random.fold_in(random.fold_in(self.row_keys, self.stream), call)
        if (each := x.shape[0] // rows) > 1:
            parts = torch.arange(each, device=keys.device).repeat(rows)
            keys = random.fold_in(keys.repeat_interleave(each, 0), parts)
        kept = x.shape[1 : x.ndim - self.shared_axes]
        mask = random.bernoulli(keys, 1 - self.p, kept)
        mask = mask.reshape(*mask.shape, *[1] * self.shared_axes)
        return torch.where(mask, x / (1 - self.p), 0.0) if self.p < 1 else x * 0.0


_SHARED_AXES = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


def trainable_copy(model: nn.Module, learning: bool) -> Called:
    """Return a copy of a network's modules that shares its tensors, in training or evaluation mode.

    A network that is given in training mode keeps the layers that stand in evaluation mode. One that is given
    in evaluation mode learns whole, whatever the mode of layers that were put into it later.

    Args:
        model: The network; it is left as it is.
        learning: Whether normalization takes statistics of the batch, and dropout is active.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, tensors)  # type: ignore[arg-type]
    if not learning:
        return Called(copied.eval())
    if not model.training:
        copied.train()
    made: dict[nn.Module, KeyedDropout] = {}  # one layer may stand at several places
    for name, layer in list(copied.named_modules(remove_duplicate=False)):
        if isinstance(layer, _DropoutNd) and type(layer) in _SHARED_AXES and name:
            keyed = KeyedDropout(name, layer.p, _SHARED_AXES[type(layer)]).train(layer.training)
            copied.set_submodule(name, made.setdefault(layer, keyed))
    return Called(copied)


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network in evaluation mode that holds these tensors, frozen.

    Args:
        model: The network; it is left as it is.
        weights: Parameters and buffers by name.
    """
    tensors: dict[int, Any] = {id(t): weights[name] for name, t in model.named_buffers()}
    for name, parameter in model.named_parameters():
        tensors[id(parameter)] = nn.Parameter(weights[name], requires_grad=False)
    return copy.deepcopy(model, tensors).eval()


def keyed_buffers(called: Called) -> list[str]:
    """Return the names of the buffers that take the keys of the rows."""
    return [f"{name}.{ROW_KEYS}" for name, m in called.model.named_modules() if isinstance(m, KeyedDropout)]


def draws(called: Called) -> bool:
    """Return whether a network has an active layer of dropout."""
    return any(isinstance(m, KeyedDropout) and m.training and m.p > 0 for m in called.modules())


def mixes_rows(model: nn.Module) -> bool:
    """Return whether a network takes statistics over the rows of a batch.

    Batch normalization without running statistics does so in evaluation mode too.
    """
    return any(
        (isinstance(m, _BatchNorm) and (m.training or m.running_mean is None))
        or (isinstance(m, _InstanceNorm) and m.training and m.track_running_stats)
        for m in model.modules()
    )


def check_trainable(what: str, model: nn.Module) -> None:
    """Check that a network can be trained: every layer has its weights, and none needs other processes.

    Raises:
        ValueError: Naming the layer.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{what}: {name!r} has no shape yet; call the network once, then give it to the pipeline"
            )
    for name, layer in model.named_modules():
        held = [own for own, value in vars(layer).items() if isinstance(value, Tensor) and not value.is_leaf]
        if held:
            raise ValueError(
                f"{what}: {name or 'the network'!r} holds {held[0]!r}, computed from other tensors, and "
                "cannot be copied; for torch.nn.utils.weight_norm or spectral_norm take those of "
                f"torch.nn.utils.parametrizations, or set {held[0]!r} to None"
            )
        if isinstance(layer, SyncBatchNorm):
            raise ValueError(
                f"{what}: {name!r} is a SyncBatchNorm, which talks to other processes; take BatchNorm, and "
                "train.local_statistics = true"
            )
        if isinstance(layer, _DropoutNd) and (type(layer) not in _SHARED_AXES or not name):
            raise ValueError(
                f"{what}: {name or 'the network'!r} is a {type(layer).__name__}, which draws from a global "
                "generator; take Dropout, Dropout1d, Dropout2d or Dropout3d inside of the network"
            )


def call_without_draws(
    what: str, called: Called, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Tensor]]:
    """Call a network with these tensors in the place of its own; refuse draws from global generators.

    Args:
        what: The start of an error message.
        called: The network.
        tensors: Parameters and buffers by their names in the network; the others are its own.
        args: Arguments by position.
        kwargs: Arguments by keyword.

    Returns:
        The answer, and the buffers after the call, by their names in the network.

    Raises:
        ValueError: If a layer draws; it names the layer.
    """
    given = {f"model.{name}": tensor for name, tensor in tensors.items()}
    if torch.compiler.is_compiling():
        return torch.func.functional_call(called, given, (args, kwargs))
    before = _generator_state()
    answer = torch.func.functional_call(called, given, (args, kwargs))
    if before != _generator_state() and (name := _find_drawing(called, given, args, kwargs)):
        raise ValueError(
            f"{what}: {name} draws from a global generator, so that no key could repeat it; take "
            "nn.Dropout, whose draws come from the keys of the rows, or draw in a stage of its own"
        )
    return answer


def _generator_state() -> bytes:
    """Return the states of the global generators, under any transformation of `torch.func` too.

    Python's own is left out: checks of types draw from it, such as those of beartype.
    """
    with _disable_current_modes(), torch._C._DisableFuncTorch():
        states = [torch.random.get_rng_state()]
        states += torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpys = [np.asarray(part).tobytes() for part in np.random.get_state(legacy=True)]
        return b"".join([*numpys, *(state.numpy().tobytes() for state in states)])


def _find_drawing(
    called: Called, given: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Return the innermost layer that draws from a global generator, in words.

    None if the network does not: another thread did, such as one that sends records.
    """
    found: list[str] = []

    def hooks(name: str, layer: nn.Module) -> Iterator[Any]:
        states: list[bytes] = []
        yield layer.register_forward_pre_hook(lambda *_: states.append(_generator_state()))

        def after(*_: Any) -> None:
            if states.pop() != _generator_state():
                found.append(f"{name!r} ({type(layer).__name__})")

        yield layer.register_forward_hook(after)

    handles = [h for name, m in called.model.named_modules() if name for h in hooks(name, m)]
    before = _generator_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.func.functional_call(called, given, (args, kwargs))
            draws_itself = before != _generator_state()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else type(called.model).__name__ if draws_itself else None
