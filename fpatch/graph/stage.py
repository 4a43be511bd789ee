"""A stage is two pure functions, and only the first may be random.

    sample : (config, keys, batch)                  -> sample   all randomness, no maths, never sees the patch
    apply  : (config, patch_params, sample, batch)  -> writes   all maths, no randomness, no mode flags

`define` joins them into a factory of `Stage` objects. A stage is called in a form derived from the two:

    stage(patch_params, key, batch) -> (out, sample)

Control, replay and counterfactuals are `apply` with another sample.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypedDict

import torch
from torch import Tensor

from fpatch.core.checks import suggest_keyword
from fpatch.core.plain import plain_torch
from fpatch.core.registry import identify, register
from fpatch.core.resource import find_networks, resolve
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.classes import named_classes, number_classes, refuse_names
from fpatch.graph.contracts import check_batch, uses_of
from fpatch.graph.declarations import (
    ALL,
    Names,
    Role,
    Summary,
    Traits,
    Weights,
    check_config,
    check_counted,
    check_declared,
    check_drawn,
    sampled_fields,
)
from fpatch.graph.factory import bind, brief, document, signature
from fpatch.graph.keys import row_keys
from fpatch.graph.mistakes import check_device, check_mapping, check_rows, describe_missing, explain
from fpatch.runtime.device import copy_to

P = ParamSpec("P")


class Nothing(TypedDict):
    """The sample of a stage that draws nothing."""


def deterministic(config: Any, keys: Tensor, batch: Batch) -> Nothing:
    """The `sample` of a stage that draws nothing.

    Example:
        >>> import fpatch
        >>> fpatch.deterministic(None, fpatch.random.key(0), {})
        {}
    """
    return {}


@dataclass(frozen=True)
class Definition(Generic[P]):
    """The contract of all stages of one kind; calling it with settings makes a `Stage`.

    `define` documents the fields.
    """

    name: str
    module: str
    config: Callable[P, Any]
    sample: Callable[[Any, Tensor, Batch], Any]
    apply: Callable[[Any, Params, Any, Values], Mapping[str, Any]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    role: Role = "stage"
    summary: Summary | None = None
    init: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    project: Callable[[Any, Params], dict[str, Tensor]] | None = None
    weights: Weights | None = None
    wire: Callable[[Any, Names | None, Names | None], Any] | None = None
    fill: Callable[[Any, tuple[str, ...]], Any] | None = None
    check: Callable[[Any, Values], Mapping[str, list[str]]] | None = None
    show: Callable[[Any, Values, Values], dict[str, Any]] | None = None
    describe: Callable[[Any], str] | None = None
    declare: Callable[[Any], Mapping[str, Any]] | None = None
    counted: str | None = None
    traits: Traits = dataclasses.field(default=Traits())
    classes: tuple[str, ...] = ()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> "Stage":
        """Make a stage with these settings; `help` of the factory shows them all.

        Raises:
            TypeError: For a setting that is unknown, with the nearest name, or missing.
            ValueError: For a value that breaks a rule of its setting.
        """
        make: Any = self.config
        return self.configured(make(**bind(self.name, make, args, kwargs)))

    def __repr__(self) -> str:
        return self.name

    def configured(self, config: Any) -> "Stage":
        """Make a stage with a config already made."""
        declared = dict(self.declare(config)) if self.declare is not None else {}
        if not declared:
            return Stage(self, config)
        flags = {f.name: declared.pop(f.name) for f in dataclasses.fields(Traits) if f.name in declared}
        traits = dataclasses.replace(self.traits, **flags)
        return Stage(dataclasses.replace(self, traits=traits, **declared), config)


@suggest_keyword
def define(
    name: str,
    config: Callable[P, Any],
    sample: Callable[..., Any],
    apply: Callable[..., Mapping[str, Any]],
    *,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    optional: tuple[str, ...] = (),
    role: Role = "stage",
    summary: Summary | None = None,
    init: Callable[[Any, Tensor], dict[str, Tensor]] | None = None,
    project: Callable[[Any, Params], dict[str, Tensor]] | None = None,
    weights: Weights | None = None,
    wire: Callable[[Any, Names | None, Names | None], Any] | None = None,
    fill: Callable[[Any, tuple[str, ...]], Any] | None = None,
    check: Callable[[Any, Values], Mapping[str, list[str]]] | None = None,
    show: Callable[[Any, Values, Values], dict[str, Any]] | None = None,
    describe: Callable[[Any], str] | None = None,
    declare: Callable[[Any], Mapping[str, Any]] | None = None,
    counted: str | None = None,
    classes: tuple[str, ...] = (),
    geometric: bool = False,
    of_patch: bool = False,
    vmap: bool = True,
    gradient: bool = True,
    compile: bool = True,
    eager: bool = False,
    pixelwise: bool = False,
    needs: tuple[str, ...] = (),
    gives: tuple[str, ...] = (),
    surrogate: str = "",
) -> Definition[P]:
    """Join a config, `sample` and `apply` into the factory of a stage.

    Args:
        name: Its name in configs.
        config: A frozen dataclass of Python values.
        sample: `(config, keys [b, 2], batch) -> TypedDict` of float32, int64 or bool tensors [b, ...].
        apply: `(config, patch_params, sample, values) -> {written name: value}`; `values` holds what is read.
        reads: Names that must exist; `("*",)` asks for all values so far.
        writes: Names that it writes.
        optional: Names read where they exist. One that is also in `writes` is written only then.
        role: A "victim" has a setting `model`. A "loss" and a "metric" write one number per row; a metric may
            write one per object, [b, m]. A "drawing" writes pictures, which only drawings read.
        summary: For a metric that gathers rows.
        init: For a parameterization: `(config, key) -> {name: parameter}`.
        project: For a parameterization: `(config, params) -> {name: the nearest allowed parameter}`.
        weights: For a stage whose network is trained.
        wire: `(config, reads, writes) -> config`, for a stage whose names are those that `node` gives.
        fill: `(config, names of the patches) -> config`, with the settings that were left None.
        check: `(config, values) -> {broken rule: places}`, for `fpatch doctor`. A place that begins with
            "image <id>" is shown as its file.
        show: `(config, values before, values after) -> {name: value}`, for the log.
        describe: `config -> sentence`.
        declare: `config -> {field or flag: value}`, for what depends on the settings, such as `fields`, the
            names in the sample.
        counted: For a loss: the name, among `reads`, of a bool value [b] or [b, k]. A row counts in the mean
            of the terms if any of it is true. None: every row counts.
        classes: Settings that are a class of the victim, by name or number. A stage runs with numbers; a
            study, or `Pipeline.with_classes`, puts them in place of names.
        geometric: See `Traits`, as for the flags that follow.
        of_patch: A loss on the patch alone.
        vmap: Whether `torch.func.vmap` maps it.
        gradient: Whether it passes a gradient.
        compile: Whether `torch.compile` traces it whole.
        eager: Whether its values decide how much it computes.
        pixelwise: Whether each pixel is made from that pixel alone.
        needs: Entries that must be there, such as "detections/final".
        gives: Entries that it adds, such as "detections/dense".
        surrogate: The gradient that it passes in place of its derivative, in a few words.

    Returns:
        The factory: `factory(**settings) -> Stage`.

    Raises:
        TypeError: For an unknown keyword, with the nearest.
        ValueError: If the config is no frozen dataclass or uses a reserved name, or `sample` does not declare
            its fields.

    Example:
        >>> import dataclasses, torch, fpatch
        >>> Dim = dataclasses.make_dataclass("Dim", [("gain", float, 0.5)], frozen=True)
        >>> def apply(config, patch_params, sample, values):
        ...     return {"image": values["image"] * config.gain}
        >>> dim = fpatch.define("dim", Dim, fpatch.deterministic, apply, reads=("image",), writes=("image",))
        >>> dim(gain=0.25).apply({}, {}, {"image": torch.ones(1, 3, 2, 2)})["image"].unique()
        tensor([0.2500])
    """
    check_config(name, config)
    fields = sampled_fields(name, sample, reads)
    check_declared(name, role, summary, reads, writes, optional, pixelwise)
    check_counted(name, role, counted, reads)
    module = apply.__module__
    identity = identify(name, module)
    parts = (role, summary, init, project, weights, wire, fill, check, show, describe, declare, counted)
    flags = geometric, of_patch, vmap, gradient, compile, eager, pixelwise
    traits = Traits(*flags, needs, gives, surrogate=surrogate)
    definition = Definition(
        identity, module, config, sample, apply, reads, writes, fields, optional, *parts, traits, classes
    )
    object.__setattr__(definition, "__doc__", document(identity, config, module, reads, optional, writes))
    object.__setattr__(definition, "__signature__", signature(config))
    register(identity, definition)
    return definition


@dataclass(frozen=True)
class Stage:
    """One configured stage: `stage(patch_params, key, batch) -> (out, sample)`.

    Example:
        >>> import torch
        >>> from fpatch import Range, compose, random
        >>> batch = {"image": torch.full((1, 3, 4, 4), 0.25), "image_id": torch.tensor([7])}
        >>> stage = compose.exposure(Range(1.0, 1.0))
        >>> out, sample = stage({}, random.key(0), {**batch, "draw": torch.tensor([0])})
        >>> sample["stops"], out["image"].mean()
        (tensor([1.]), tensor(0.5000))
    """

    definition: Definition[...]
    config: Any

    def __call__(self, patch_params: Params, key: Tensor, batch: Batch) -> tuple[Values, Sample]:
        """`sample`, then `apply`; the batch keeps the contracts of the names that are read."""
        check_mapping("batch", batch, "the order is (patch_params, key, batch)")
        d = self.definition
        check_batch(uses_of(d.name, (*d.reads, *d.optional)), batch)
        written, sample = self.run(patch_params, self.sample(key, batch), batch)
        return {**batch, **written}, sample

    def sample(self, key: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Draw a sample from a key [2] or from row keys [b, 2].

        Returns:
            A flat dict of float32, int64 or bool tensors [b, ...].

        Raises:
            ValueError: If the stage draws other fields, types or rows than it declares.
        """
        keys = row_keys(key, batch)
        with plain_torch():
            drawn = self.definition.sample(self.config, keys, batch)
        drawn = check_drawn(self.definition.name, drawn, len(keys))
        if set(drawn) != set(self.definition.fields):
            raise ValueError(
                f"{self.definition.name}: sample must draw {sorted(self.definition.fields)}, as declared, "
                f"but drew {sorted(drawn)}"
            )
        return drawn

    def written(self, patch_params: Params, sample: Sample, values: Batch) -> dict[str, Any]:
        """The values that `run` writes."""
        return self.run(patch_params, sample, values)[0]

    def run(
        self, patch_params: Params, sample: Sample, values: Batch
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Apply the stage to a given sample; return only the values that it writes, and its whole sample.

        The sample is the given one, unless the stage draws while it runs.

        Raises:
            ValueError: If a name that it reads is missing, it writes other names than it declares, or a
                setting is a class by its name.
        """
        d = self.definition
        if d.classes:
            refuse_names(d.name, self.named_classes)
        missing = [name for name in d.reads if name != ALL and name not in values]
        if missing:
            raise ValueError(f"{d.name} reads {missing[0]!r}, {describe_missing(missing[0], values)}")
        names = values if d.reads == (ALL,) else [n for n in (*d.reads, *d.optional) if n in values]
        read = {name: values[name] for name in names}
        try:
            with plain_torch(autocast=d.role == "victim"):
                written: Any = d.apply(self.config, patch_params, sample, read)
        except Exception as error:
            if (found := explain(error, d, patch_params, read, sample)) is None:
                raise
            raise ValueError(found) from error
        written, whole = written if d.traits.late else (written, sample)
        check_mapping(f"{d.name}: what apply returns", written, "return {name: value}")
        written = dict(written)
        expected = {n for n in d.writes if n not in d.optional or n in values}
        if set(written) != expected:
            raise ValueError(
                f"{d.name}: apply must write {sorted(expected)}, as declared, but wrote {sorted(written)}"
            )
        check_rows(d.name, written, read)
        return written, dict(whole)

    def apply(self, patch_params: Params, sample: Sample, batch: Batch) -> Values:
        """Apply the stage to a given sample, from memory or a log; return the batch with its writes."""
        return {**batch, **self.written(patch_params, sample, batch)}

    def to(self, device: torch.device | str) -> "Stage":
        """A copy of the stage whose networks are copied to a device; the original networks do not move.

        A metric that gathers rows stays on the host. The copy is meant to run, not to be written to a config.
        """
        device = check_device("stage.to", device)
        if self.definition.summary is not None:
            return self
        copies = {name: copy_to(model, device) for name, model in find_networks(self.config).items()}
        return Stage(self.definition, dataclasses.replace(self.config, **copies)) if copies else self

    @property
    def named_classes(self) -> dict[str, str]:
        """The settings that are a class by its name."""
        return named_classes(self.config, self.definition.classes)

    def with_classes(self, names: Sequence[str]) -> "Stage":
        """The stage with the numbers of classes in place of their names; the victim counts as `names` does.

        Raises:
            ValueError: If a name is none of these; the error names the nearest one.
        """
        numbers = number_classes(self.definition.name, self.named_classes, names)
        return self.definition.configured(dataclasses.replace(self.config, **numbers)) if numbers else self

    def load(self) -> None:
        """Load the resources of the settings, models and images, before compiling or `torch.func` traces."""
        for value in (getattr(self.config, f.name) for f in dataclasses.fields(self.config)):
            for part in value.values() if isinstance(value, Mapping) else (value,):
                resolve(part)
        getattr(self.config, "called", None)  # the copy of a network's modules, made once

    def __repr__(self) -> str:
        fields = [(f.name, getattr(self.config, f.name)) for f in dataclasses.fields(self.config)]
        return f"{self.definition.name}({', '.join(f'{k}={brief(v)}' for k, v in fields)})"
