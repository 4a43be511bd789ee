"""Pipelines: named graphs of stages, and the only code that runs them.

One function, `Pipeline.apply`, computes params -> patch -> image -> detections -> losses. Training,
evaluation, control and replay call it with different samples.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph import diagram
from fpatch.graph.contracts import check_batch, find_uses
from fpatch.graph.finite import FiniteRows, finite_inputs, follow_finite
from fpatch.graph.in_place import count_writes, refuse_writes
from fpatch.graph.keys import fold_path, row_keys
from fpatch.graph.mistakes import check_device, check_mapping, explain
from fpatch.graph.node import (
    PHASES,
    Node,
    Part,
    encode_node,
    flatten,
    inside,
    needed_paths,
    pick_values,
    required_names,
    stream_path,
)
from fpatch.graph.wiring import check_wiring, fill_settings


class Pipeline(Mapping[str, Node]):
    """An immutable mapping of paths to nodes, which run in the order written.

    `pipeline(patch_params, key, batch) -> (out, sample)` has the form of a stage. A pipeline whose nodes name
    phases runs after `at(phase)`, which picks the nodes of that phase.

    Example:
        >>> import torch
        >>> from fpatch import Range, compose, pipeline, random
        >>> p = pipeline({"camera": {"dim": compose.exposure(Range(1, 1)), "noise": compose.read_noise()}})
        >>> p.required(), list(p), list(p.without("camera/noise"))
        (('image',), ['camera/dim', 'camera/noise'], ['camera/dim'])
        >>> batch = {"image": torch.full((1, 3, 4, 4), 0.25), "image_id": torch.tensor([7])}
        >>> out, sample = p.upto("camera/dim")({}, random.key(0), {**batch, "draw": torch.tensor([0])})
        >>> sample["camera/dim"]["stops"], out["image"].mean()
        (tensor([1.]), tensor(0.5000))
    """

    def __init__(self, nodes: Mapping[str, Node], phase: str | None = None) -> None:
        self._given, self._nodes = dict(nodes), fill_settings(nodes)
        self._phase = phase
        self._needed: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {}
        check_wiring(self._nodes, phase)
        self._uses = find_uses(self._nodes)

    # -- the graph as a mapping ---------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Node:
        if path not in self._nodes:
            raise KeyError(f"no node {path!r}; {nearest(path, self._nodes)}")
        return self._nodes[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __or__(self, other: Mapping[str, Part]) -> "Pipeline":
        """Replace nodes in place and append new ones; settings derived from the patches are filled again.

        In a part of a pipeline (`at`, `since`, ...) they keep the values of the whole.
        """
        return Pipeline({**self._given, **flatten(other)}, self._phase)

    def without(self, *paths: str) -> "Pipeline":
        """The pipeline without these nodes or groups; the draws of the others do not change."""
        for path in paths:
            if not any(inside(p, path) for p in self):
                raise KeyError(f"no node {path!r}; {nearest(path, self)}")
        kept = {p: n for p, n in self.items() if not any(inside(p, path) for path in paths)}
        return Pipeline(kept, self._phase)

    def upto(self, path: str) -> "Pipeline":
        """The nodes up to and including this one."""
        order = list(self)
        return Pipeline({p: self[p] for p in order[: order.index(self._known(path)) + 1]}, self._phase)

    def since(self, path: str) -> "Pipeline":
        """The nodes from this one on; values that earlier nodes wrote become inputs."""
        order = list(self)
        return Pipeline({p: self[p] for p in order[order.index(self._known(path)) :]}, self._phase)

    def at(self, phase: str) -> "Pipeline":
        """The nodes alive in a phase.

        Raises:
            ValueError: If the phase is neither standard nor named by a node, or no node is alive in it.
        """
        known = {*PHASES, *(q for n in self.values() for q in n.phases or ())}
        alive = {p: dataclasses.replace(n, phases=None) for p, n in self.items() if n.alive(phase)}
        if phase == "eval":
            raise ValueError("phase 'eval' means two phases; choose 'validation' or 'test'")
        if not alive or phase not in known:
            others = {q for q in known - {phase} if any(n.alive(q) for n in self.values())}
            raise ValueError(f"no node is alive in phase {phase!r}; {nearest(phase, others)}")
        return Pipeline(alive, phase)

    def to(self, device: torch.device | str) -> "Pipeline":
        """A copy of the pipeline with its networks copied to a device; see `Stage.to`."""
        device = check_device("pipeline.to", device)
        moved = {p: dataclasses.replace(n, stage=n.stage.to(device)) for p, n in self._given.items()}
        return Pipeline(moved, self._phase)

    def with_classes(self, names: Sequence[str]) -> "Pipeline":
        """The pipeline with the numbers of classes in place of their names.

        Args:
            names: The names of the victim's classes, in the order in which it counts them.

        Raises:
            ValueError: If a setting names another class; the error names the nearest one.

        Example:
            >>> from fpatch import losses, pipeline
            >>> pipeline({"wrong": losses.misclassify(target="stop")}).with_classes(("yield", "stop"))
            wrong  losses.misclassify(target=1, margin=10.0): logits, target -> misclassify
        """
        made = dict(self._given)
        for path, n in self._given.items():
            try:
                made[path] = dataclasses.replace(n, stage=n.stage.with_classes(names))
            except ValueError as error:
                raise ValueError(f"node {path!r}: {error}") from error
        return Pipeline(made, self._phase)

    def required(self, phase: str | None = None) -> tuple[str, ...]:
        """The names that a batch must hold: nodes read them, and no earlier node writes them."""
        return required_names(self if phase is None else self.at(phase))

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms that the nodes write."""
        return tuple(t for n in self.values() for t in n.terms)

    @property
    def summaries(self) -> tuple[str, ...]:
        """Paths of the metrics that gather rows; see `fpatch.graph.stage.Summary`."""
        return tuple(p for p, n in self.items() if n.stage.definition.summary is not None)

    @property
    def parameterizations(self) -> tuple[str, ...]:
        """Paths of the nodes that turn patch parameters into a patch."""
        return tuple(p for p, n in self.items() if n.stage.definition.init is not None)

    # -- what is trained ----------------------------------------------------------------------------------

    def init(self, key: Tensor) -> dict[str, Tensor]:
        """Fresh parameters of all parameterizations, each from `fold_in(key, path)`."""
        params: dict[str, Tensor] = {}
        for path in self.parameterizations:
            stage = self[path].stage
            assert stage.definition.init is not None
            made = stage.definition.init(stage.config, fold_path(key, path))
            if clash := set(params) & set(made):
                raise ValueError(f"{path}: an earlier node also makes the patch {min(clash)!r}; rename one")
            params |= made
        return params

    def project(self, params: Params) -> dict[str, Tensor]:
        """Project parameters onto those that every parameterization allows."""
        projected = dict(params)
        for path in self.parameterizations:
            stage = self[path].stage
            if stage.definition.project is not None:
                try:
                    projected |= stage.definition.project(stage.config, projected)
                except KeyError as error:
                    raise ValueError(explain(error, stage.definition, params, {})) from error
        return projected

    # -- running ------------------------------------------------------------------------------------------

    def __call__(
        self, patch_params: Params, key: Tensor, batch: Batch, want: Sequence[str] | None = None
    ) -> tuple[Values, Sample]:
        """`sample`, then `apply`."""
        sample = self.sample(key, batch)
        return self.apply(patch_params, sample, batch, want), sample

    def sample(self, key: Tensor, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Draw the samples of all nodes, from a key [2] or from row keys [b, 2].

        A node `a/b` draws from `fold_in(fold_in(row_keys, "a"), "b")`.

        Returns:
            `{path: {field: [b, ...]}}`, with an entry for every node that draws.

        Raises:
            ValueError: If the batch breaks the contract of a standard name, see `fpatch.graph.contracts`, or
                lacks a name that a node samples from.
        """
        self._check_ready()
        check_mapping("batch", batch, "the order is (patch_params, key, batch)")
        check_batch(self._uses, batch)
        keys = row_keys(key, batch)
        drawing = {path: n for path, n in self.items() if n.stage.definition.fields}
        sample = {}
        for path, n in drawing.items():
            try:
                sample[path] = n.stage.sample(fold_path(keys, stream_path(path, n)), n.inputs(batch))
            except KeyError as error:
                name = n.reads.get(error.args[0], error.args[0])
                raise ValueError(
                    f"node {path!r} samples from {name!r}, which the batch lacks; {nearest(name, batch)}"
                ) from error
        return sample

    def apply(
        self, patch_params: Params, sample: Sample, batch: Batch, want: Sequence[str] | None = None
    ) -> Values:
        """Run the nodes on a given sample, from `sample`, edited, or read from a log.

        Args:
            patch_params: The trained parameters.
            sample: `{path: {field: [b, ...]}}`.
            batch: Named tensors [b, ...].
            want: Names to return; only the nodes that they need run. None for all.

        Raises:
            ValueError: If the sample lacks a node, a name is missing, or `want` names no value.
        """
        check_mapping("batch", batch, "the order is (patch_params, sample, batch)")
        values = dict(batch)
        for _, _, written in self._run(patch_params, sample, values, want):
            values.update(written)
        return values if want is None else pick_values(self, values, want)

    def observe(
        self, patch_params: Params, sample: Sample, batch: Batch, want: Sequence[str]
    ) -> tuple[Values, dict[str, Values], FiniteRows]:
        """Apply, and return also the inputs of metrics with a summary, and the rows that are finite.

        Inputs are by path, under the metric's own names.
        """
        values, seen, finite = dict(batch), {}, FiniteRows({}, {})
        rows = len(optree.tree_leaves(batch.get("image_id", dict(batch)))[0])
        for path, n, written in self._run(patch_params, sample, values, want, self.summaries):
            if path in self.summaries:
                seen[path] = n.inputs(values)
                finite.summaries[path] = finite_inputs(finite.names, n, values, rows)
            finite.names.update(follow_finite(finite.names, n, values, written, rows))
            values.update(written)
        return pick_values(self, values, want), seen, finite

    def trace(self, patch_params: Params, sample: Sample, batch: Batch) -> dict[str, dict[str, Any]]:
        """Run the nodes and return the values that each wrote, `{path: {name: value}}`."""
        values, trace = dict(batch), {}
        for path, _, written in self._run(patch_params, sample, values, None):
            values.update(written)
            trace[path] = written
        return trace

    def _run(
        self,
        patch_params: Params,
        sample: Sample,
        values: Values,
        want: Sequence[str] | None,
        paths: tuple[str, ...] = (),
    ) -> Iterator[tuple[str, Node, dict[str, Any]]]:
        self._check_ready()
        check_mapping("sample", sample, "draw one by pipeline.sample(key, batch)")
        for path in self if want is None else self._need(tuple(want), paths):
            n = self[path]
            if path not in sample and n.stage.definition.fields:
                raise ValueError(f"sample has no entry for the node {path!r}; {nearest(path, sample)}")
            given = (patch_params, sample.get(path, {}), n.inputs(values))
            try:
                before = count_writes(given)
                own = n.stage.written(*given)
                refuse_writes(path, before, given)
            except Exception as error:
                error.add_note(f"in node {path!r}: {n.stage!r}")
                raise
            yield path, n, {n.writes[name]: value for name, value in own.items()}

    def _need(self, want: tuple[str, ...], paths: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Paths of these nodes and of all that they and the wanted names need, in order."""
        if (want, paths) not in self._needed:
            self._needed[want, paths] = needed_paths(self, want, paths)
        return self._needed[want, paths]

    # -- config, prose and diagram ------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `fpatch.build` builds the same pipeline."""
        return {path: encode_node(n) for path, n in self.items()}

    @property
    def given_config(self) -> dict[str, Any]:
        """The config as given: settings derived from the patches are None where they were left None."""
        return {path: encode_node(n) for path, n in self._given.items()}

    def describe(self) -> str:
        """One line per node: path, stage, reads, writes and phases; `name?` marks an optional read."""
        return diagram.describe(self)

    __repr__ = describe

    def mermaid(self, phase: str | None = None) -> str:
        """A Mermaid flowchart of a phase, with a subgraph for every group."""
        return diagram.mermaid(self if phase is None else self.at(phase))

    def _known(self, path: str) -> str:
        self[path]
        return path

    def _check_ready(self) -> None:
        phased = [p for p, n in self.items() if n.phases is not None]
        if phased:
            raise ValueError(f"node {phased[0]!r} names phases; choose a phase first: pipeline.at('train')")


def pipeline(parts: Mapping[str, Part]) -> Pipeline:
    """Make a pipeline of stages, nodes, plain functions and nested mappings, which run in the order written.

    Names are global; `./x` in a group `a` is `a/x`, and `../x` is `x` one level up.

    Raises:
        ValueError: With both nodes, for a broken law of wiring. A node may not read a name that only a later
            node writes. Of two nodes that write one name, the second reads it. A geometric stage moves the
            boxes too. Every way of the patch into the image has an opacity, which a control sets to 0.

    Example:
        >>> import fpatch
        >>> fpatch.pipeline({"dim": fpatch.compose.exposure(), "camera": {"blur": fpatch.compose.blur()}})
        dim          compose.exposure(stops=(-1.0, 1.0)): image -> image
        camera/blur  compose.blur(sigma_px=(0.0, 1.0)): image -> image
    """
    check_mapping("pipeline(parts)", parts, "name each stage, {name: stage}")
    return Pipeline(flatten(parts))
