"""A network as a node: any module, frozen or trained."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.resource import Resource, resolve
from fpatch.core.tree import is_traced, widen
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph import layers
from fpatch.graph.declarations import Names, Weights
from fpatch.graph.in_place import count_writes
from fpatch.graph.mistakes import describe
from fpatch.graph.parameters import BUFFERS
from fpatch.graph.stage import define
from fpatch.ops.detections import convert_answer

_ANSWERS = {"logits", "detections"}
"""The answers of a victim."""


class ModuleSample(TypedDict, total=False):
    """The draws of a network: the keys of its rows, if it is trained with dropout."""

    key: Int64[Tensor, "b 2"]


@dataclass(frozen=True)
class Module:
    """Settings of `graph.module`: a network as a node.

    A network that is not trained is called as it is. Its weights and buffers are never changed, and gradients
    pass through it. The weights of a trained one are entries of the parameters, under the path of its node,
    `path/weight`, and so are its buffers, which a training step returns anew. In the phase `train` its
    layers behave as in training: normalization takes the statistics of the batch, and dropout draws from the
    keys of the rows. In every other phase both are off. One that makes `logits` or `detections` of `image` is
    a victim.

    Attributes:
        model: The module, or the `Resource` that makes one. One module in two nodes shares its weights.
        trainable: Whether it is trained: the parameters with `requires_grad`.
        inputs: The names of the values that it takes by position; `node(..., reads=[...])` sets them.
        keywords: The arguments that it takes by keyword; `node(..., reads={argument: value})` sets them.
        outputs: One name for the whole answer, or one for each part of a tuple;
            `node(..., writes=[...])` sets them.
        entries: The entries of an answer that is a mapping; `node(..., writes={entry: value})` sets them.
        share: The path of the node whose network, weights and buffers it uses, in the place of `model`.
        learning: Whether its layers behave as in training; `Pipeline.at("train")` sets it.

    Raises:
        ValueError: If a frozen module is in training mode, a trained one has a layer that draws from a
            global generator, or the arguments are not those of its `forward`.

    Example:
        >>> import torch, fpatch
        >>> from fpatch import graph
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
        >>> p = fpatch.pipeline({"net": fpatch.node(graph.module(net, trainable=True), reads=["image"],
        ...                                         writes=["logits"])})
        >>> params = p.init(fpatch.random.key(0))
        >>> {name: tuple(value.shape) for name, value in params.items()}
        {'net/1.weight': (5, 12), 'net/1.bias': (5,)}
        >>> p.apply(params, {}, {"image": torch.ones(2, 3, 2, 2)})["logits"].shape
        torch.Size([2, 5])
    """

    model: Resource | nn.Module | None = None
    trainable: bool = False
    inputs: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    share: str | None = None
    learning: bool = False

    def __post_init__(self) -> None:
        if self.model is None and self.share is None:
            raise ValueError("module: give a model, or share = the path of the node that has it")
        if BUFFERS in (names := (*self.inputs, *self.keywords, *self.outputs, *self.entries)):
            raise ValueError(f"module: {BUFFERS!r} is the name of its own buffers, got {names}; rename it")
        if self.learning and not self.trainable:
            raise ValueError("module(learning): a network that is not trained cannot learn")
        if self.model is not None and not isinstance(self.model, (Resource, nn.Module)):
            got = self.model.__name__ if isinstance(self.model, type) else type(self.model).__name__
            raise ValueError(f"module(model) must be a torch.nn.Module or a Resource, got {got}")
        if isinstance(self.model, nn.Module):
            _ = self.called, self.shapes, self.buffers  # now, since no compiler can make them

    @functools.cached_property
    def called(self) -> layers.Called:
        """The network as it is called: itself if it is frozen, or else a copy of its modules."""
        model = _check(self, resolve(self.model))
        return layers.trainable_copy(model, self.learning) if self.trainable else layers.Called(model)

    @functools.cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of weights and buffers by name; looked up once, as a walk takes as long as a layer."""
        return {name: tensor.shape for name, tensor in _tensors(resolve(self.model)).items()}

    @functools.cached_property
    def buffers(self) -> frozenset[str]:
        """The names of the buffers."""
        return frozenset(name for name, _ in resolve(self.model).named_buffers())


def _check(config: Module, model: Any) -> nn.Module:
    """Check that a model can be called as its node says, and return it."""
    what = f"module({type(model).__name__})"
    if not isinstance(model, nn.Module):
        raise ValueError(f"module: the model must be a torch.nn.Module, got {type(model).__name__}")
    if config.trainable:
        layers.check_trainable(what, model)
    elif training := [name for name, m in model.named_modules() if m.training]:
        raise ValueError(
            f"{what}: {training[0] or 'the model'!r} is in training mode, and the node is not trained; call "
            "model.eval() first, or give trainable=True"
        )
    if config.inputs or config.keywords:
        try:
            inspect.signature(model.forward).bind(*config.inputs, **dict.fromkeys(config.keywords))
        except TypeError as error:
            takes = ", ".join(inspect.signature(model.forward).parameters)
            raise ValueError(f"{what}: forward takes ({takes}), but {error}; correct reads") from error
    return model


def wire(config: Module, reads: Names | None, writes: Names | None) -> Module:
    """Set the names that a node gives, where the settings have none."""
    given: dict[str, tuple[str, ...]] = {}
    if reads is not None and not (config.inputs or config.keywords):
        given["keywords" if isinstance(reads, Mapping) else "inputs"] = tuple(reads)
    if writes is not None and not (config.outputs or config.entries):
        given["entries" if isinstance(writes, Mapping) else "outputs"] = tuple(writes)
    return dataclasses.replace(config, **given)


def declare(config: Module) -> dict[str, Any]:
    """The names that the stage reads, writes and draws, and its weights."""
    writes, optional, fields, mixes = (*config.outputs, *config.entries), (), (), False
    if config.learning:
        fields = ("key",) if layers.draws(config.called) else ()
        if config.buffers:
            writes, optional = (*writes, BUFFERS), (BUFFERS,) if config.share else ()
    if config.learning or isinstance(config.model, nn.Module):  # no resource is loaded for this alone
        mixes = layers.mixes_rows(config.called)
    reads = (*config.inputs, *config.keywords)
    return {
        "role": "victim" if "image" in reads and _ANSWERS & {*writes} else "stage",
        "reads": reads,
        "writes": writes,
        "optional": optional,
        "fields": fields,
        "weights": WEIGHTS if config.trainable else None,
        "mixes_rows": mixes,
        "vmap": not mixes,
    }


def sample(config: Module, keys: Tensor, batch: Batch) -> ModuleSample:
    return {"key": keys} if config.learning and layers.draws(config.called) else {}


def apply(config: Module, patch_params: Params, sample: Sample, values: Values) -> Values:
    called = config.called
    what = f"module({type(called.model).__name__})"
    args = tuple(values[name] for name in config.inputs)
    kwargs = {name: values[name] for name in config.keywords}
    if not config.trainable:
        return _in_single(_name(config, what, _call_frozen(what, called, args, kwargs)), values)
    own, buffers = {**patch_params, **values.get(BUFFERS, {})}, config.buffers
    _check_weights(what, config.shapes, own)
    given = {name: own[name].detach().clone() if name in buffers else own[name] for name in own}
    if "key" in sample:
        given |= dict.fromkeys(layers.keyed_buffers(called), sample["key"])
    answer, after = layers.call_without_draws(what, called, given, args, kwargs)
    named = _in_single(_name(config, what, answer), values)
    if config.learning and buffers:
        named[BUFFERS] = {name: after[name].detach() for name in config.shapes if name in buffers}
    return named


def _in_single(named: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Bring numbers below float32 to it, and the answers of a victim to the type of its images."""
    dtype = torch.promote_types(values["image"].dtype, torch.float32) if "image" in values else torch.float32
    return {
        name: convert_answer(value, dtype, name) if name in _ANSWERS else widen(value)
        for name, value in named.items()
    }


def _call_frozen(what: str, called: layers.Called, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a network without gradients of its weights; refuse one that changes these or its buffers."""
    weights = {name: p.detach() for name, p in called.model.named_parameters()}
    if torch.compiler.is_compiling():
        return torch.func.functional_call(called.model, weights, args, kwargs)
    buffers = dict(called.model.named_buffers())
    before = count_writes(((), weights | buffers))
    answer, after = layers.call_without_draws(what, called, weights, args, kwargs)
    counts = count_writes(((), weights | buffers))
    written = [name for name, count in before.items() if counts.get(name) != count]
    if lost := [name for name in written if name in weights]:
        raise ValueError(f"{what}: it writes into its weights {lost[0]!r}; let it work on a copy")
    if written or any(_differ(buffer, after.get(name, buffer)) for name, buffer in buffers.items()):
        raise ValueError(f"{what}: it writes into its buffers in evaluation mode; give trainable=True")
    return answer


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape hold other numbers; a cache of another shape may be new."""
    if one is other or is_traced(one) or is_traced(other) or one.shape != other.shape:
        return False
    return not torch.equal(one, other)


def _check_weights(what: str, expected: Mapping[str, torch.Size], own: Params) -> None:
    """Check that the parameters hold the weights of a network, in its shapes."""
    if missing := [name for name in expected if name not in own]:
        raise ValueError(
            f"{what}: the parameters lack its weights {missing[0]!r}; pipeline.init(key) makes them"
        )
    for name, value in own.items():
        if name not in expected:
            raise ValueError(f"{what}: it has no weights {name!r}; {nearest(name, expected)}")
        if value.shape != expected[name]:
            raise ValueError(
                f"{what}: the weights {name!r} must have the shape {list(expected[name])}, got "
                f"{list(value.shape)}; they are those of another network"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _name(config: Module, what: str, answer: Any) -> dict[str, Any]:
    """Name the parts of an answer."""
    if config.entries:
        if not isinstance(answer, Mapping) or (lost := [n for n in config.entries if n not in answer]):
            way = nearest(lost[0], answer) if isinstance(answer, Mapping) else "give writes as a list"
            lacks = repr(lost[0]) if isinstance(answer, Mapping) else "a mapping"
            raise ValueError(f"{what}: its answer, {describe(answer)}, lacks {lacks}; {way}")
        return {name: answer[name] for name in config.entries}
    if len(config.outputs) == 1:
        return {config.outputs[0]: answer}
    if not isinstance(answer, (tuple, list)) or len(answer) != len(config.outputs):
        got = f"{len(answer)} parts" if isinstance(answer, (tuple, list)) else describe(answer)
        raise ValueError(
            f"{what}: the node writes {len(config.outputs)} names, {list(config.outputs)}, but forward "
            f"returned {got}; correct writes"
        )
    return dict(zip(config.outputs, answer, strict=True))


def init(config: Module, key: Tensor) -> dict[str, Tensor]:
    """The weights and buffers with which the training begins: copies of those of the network."""
    return {name: t.detach().clone() for name, t in _tensors(_check(config, resolve(config.model))).items()}


def trained(config: Module) -> tuple[str, ...]:
    """The names of the parameters that get a gradient."""
    model = _check(config, resolve(config.model))
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    if not names:
        raise ValueError(
            f"module({type(model).__name__}): trainable, but no parameter has requires_grad; leave out "
            "trainable, or call model.requires_grad_()"
        )
    return names


def learn(config: Module) -> Module:
    """The settings with which it is trained."""
    return dataclasses.replace(config, learning=True)


def freeze(config: Module, weights: Mapping[str, Tensor]) -> Module:
    """The settings of a frozen network with these weights."""
    model = resolve(config.model)
    _check_weights(f"module({type(model).__name__})", config.shapes, weights)
    frozen = layers.with_weights(model, weights)
    return dataclasses.replace(config, model=frozen, trainable=False, share=None, learning=False)


WEIGHTS = Weights(init, trained, learn, freeze)
"""The weights of a network that is trained."""

module = define(
    "module",
    Module,
    sample,
    apply,
    reads=(),
    writes=(),
    weights=WEIGHTS,
    wire=wire,
    declare=declare,
)
