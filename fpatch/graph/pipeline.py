"""Pipelines: named graphs of stages, and the only code that runs them.

One function, `Pipeline.apply`, computes params -> patch -> image -> detections -> losses. Training,
evaluation, control and replay call it with different samples.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import optree
import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph import diagram
from fpatch.graph.contracts import check_batch, find_uses
from fpatch.graph.finite import FiniteRows, finite_inputs, follow_finite
from fpatch.graph.functions import gather, spread
from fpatch.graph.in_place import count_writes, refuse_writes
from fpatch.graph.keys import row_keys
from fpatch.graph.mistakes import check_device, check_mapping
from fpatch.graph.node import (
    Node,
    Part,
    check_phased,
    encode_node,
    flatten,
    inside,
    needed_paths,
    number_nodes,
    pick_values,
    required_names,
    slice_paths,
)
from fpatch.graph.parameters import (
    frozen_nodes,
    init_params,
    own_params,
    patches_in,
    project_params,
    trainable_names,
)
from fpatch.graph.samples import draw_nodes
from fpatch.graph.wiring import check_wiring, choose_phase, fill_settings, share_networks


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
        self._given, self._nodes = dict(nodes), share_networks(fill_settings(nodes))
        self._phase = phase
        self._needed: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {}
        check_wiring(self._nodes, phase)
        self._uses, self._seen = find_uses(self._nodes), set[tuple[Any, ...]]()

    # -- the graph as a mapping ---------------------------------------------------------------------------

    @overload
    def __getitem__(self, path: str) -> Node: ...

    @overload
    def __getitem__(self, path: slice) -> "Pipeline": ...

    def __getitem__(self, path: str | slice) -> "Node | Pipeline":
        """A node by its path, or the nodes of a slice by numbers or by paths, `p[1:3]` or `p["a":"c"]`.

        A slice of paths holds both ends; values that earlier nodes wrote become inputs.
        """
        if isinstance(path, slice):
            return Pipeline({p: self[p] for p in slice_paths(tuple(self), path)}, self._phase)
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
        """The nodes up to and including this one: `p[:path]`."""
        return self[:path]

    def since(self, path: str) -> "Pipeline":
        """The nodes from this one on, `p[path:]`; values that earlier nodes wrote become inputs."""
        return self[path:]

    def at(self, phase: str) -> "Pipeline":
        """The nodes alive in a phase; in `train`, networks that are trained behave as in training.

        Raises:
            ValueError: If the phase is neither standard nor named by a node, or no node is alive in it.
        """
        return Pipeline(choose_phase(self, phase), phase)

    def to(self, device: torch.device | str) -> "Pipeline":
        """A copy of the pipeline with its networks copied to a device; see `Stage.to`."""
        device, given = check_device("pipeline.to", device), share_networks(self._given)
        moved = {p: dataclasses.replace(n, stage=n.stage.to(device)) for p, n in given.items()}
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
        return Pipeline(number_nodes(self._given, names), self._phase)

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

    def init(self, key: Tensor) -> dict[str, Tensor]:
        """Fresh parameters of patches, from `fold_in(key, path)`, and the weights of trained networks."""
        return init_params(self, key)

    def project(self, params: Params) -> dict[str, Tensor]:
        """Project parameters onto those that every parameterization allows."""
        return project_params(self, params)

    def trainable(self, wrt: Sequence[str] | None = None) -> tuple[str, ...]:
        """Names of the parameters that can be trained, or those of these patches, nodes and groups.

        Raises:
            ValueError: If `wrt` names nothing that is trained; the error names the nearest.
        """
        return trainable_names(self, wrt)

    def freeze(self, params: Params) -> "Pipeline":
        """The pipeline with the weights of these parameters as constants; only patches are left to train.

        Raises:
            ValueError: If weights are missing, or are those of another network.
        """
        frozen = frozen_nodes(self, params)
        return Pipeline({**self._given, **frozen}, self._phase) if frozen else self

    # -- running ------------------------------------------------------------------------------------------

    def __call__(
        self, patch_params: Params, key: Tensor, batch: Batch, want: Sequence[str] | None = None
    ) -> tuple[Values, Sample]:
        """`sample`, then `apply`; the sample also holds what plain functions drew while they ran."""
        sample, values = self.sample(key, batch), dict(batch)
        for path, n, written, own in self._run(patch_params, sample, values, want):
            values.update(written)
            sample |= spread(path, own) if n.stage.definition.traits.late else {}
        return values if want is None else pick_values(self, values, want), sample

    def sample(self, key: Tensor, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Draw the samples of all nodes, from a key [2] or from row keys [b, 2].

        A node `a/b` draws from `fold_in(fold_in(row_keys, "a"), "b")`.

        Returns:
            `{path: {field: [b, ...]}}`, with an entry for every node that draws.

        Raises:
            ValueError: If the batch breaks the contract of a standard name, see `fpatch.graph.contracts`, or
                lacks a name that a node samples from.
        """
        check_phased(self)
        check_mapping("batch", batch, "the order is (patch_params, key, batch)")
        check_batch(self._uses, batch, self._seen)
        return draw_nodes(self, row_keys(key, batch), batch)

    def complete(self, patch_params: Params, sample: Sample, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Add to a sample what plain functions draw while they run; only the nodes that they need run."""
        late = tuple(path for path, n in self.items() if n.stage.definition.traits.late)
        values, whole = dict(batch), dict(sample)
        for path, _, written, own in self._run(patch_params, sample, values, (), late):
            values.update(written)
            whole |= spread(path, own) if path in late else {}
        return whole  # type: ignore[return-value]

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
        for _, _, written, _ in self._run(patch_params, sample, values, want):
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
        for path, n, written, _ in self._run(patch_params, sample, values, want, self.summaries):
            if path in self.summaries:
                seen[path] = n.inputs(values)
                finite.summaries[path] = finite_inputs(finite.names, n, values, rows)
            finite.names.update(follow_finite(finite.names, n, values, written, rows))
            values.update(written)
        return pick_values(self, values, want), seen, finite

    def trace(self, patch_params: Params, sample: Sample, batch: Batch) -> dict[str, dict[str, Any]]:
        """Run the nodes and return the values that each wrote, `{path: {name: value}}`."""
        values, trace = dict(batch), {}
        for path, _, written, _ in self._run(patch_params, sample, values, None):
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
    ) -> Iterator[tuple[str, Node, dict[str, Any], dict[str, Tensor]]]:
        """Yield each node with its path, the values that it wrote, and its whole sample."""
        check_phased(self)
        check_mapping("sample", sample, "draw one by pipeline.sample(key, batch)")
        patches = patches_in(patch_params)
        for path in self if want is None else self._need(tuple(want), paths):
            n = self[path]
            if path not in sample and n.stage.definition.fields:
                raise ValueError(f"sample has no entry for the node {path!r}; {nearest(path, sample)}")
            drawn = gather(path, sample) if n.stage.definition.traits.late else sample.get(path, {})
            given = (own_params(path, n, patch_params, patches), drawn, n.inputs(values))
            try:
                before = count_writes(given)
                written, own = n.stage.run(*given)
                refuse_writes(path, before, given)
            except Exception as error:
                error.add_note(f"in node {path!r}: {n.stage!r}")
                raise
            yield path, n, {n.writes[name]: value for name, value in written.items()}, own

    def _need(self, want: tuple[str, ...], paths: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Paths of these nodes and of all that they and the wanted names need, in order."""
        if (want, paths) not in self._needed:
            self._needed[want, paths] = needed_paths(self, want, paths)
        return self._needed[want, paths]

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
