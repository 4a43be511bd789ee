"""Nodes run in the order written, on a sample: the only code that runs them.

One function, `apply`, computes params -> patch -> image -> detections -> losses. Training, evaluation,
control and replay call it with different samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optree
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.contracts import Use, check_batch
from fpatch.graph.finite import FiniteRows, finite_inputs, follow_finite
from fpatch.graph.functions import gather, spread
from fpatch.graph.in_place import count_writes, refuse_writes
from fpatch.graph.keys import row_keys
from fpatch.graph.mistakes import NoParams, check_mapping
from fpatch.graph.names import needed_paths, pick_values
from fpatch.graph.node import Node, check_phased
from fpatch.graph.parameters import own_params, patches_in
from fpatch.graph.samples import draw_nodes


class Runner(Mapping[str, Node]):
    """A mapping of paths to nodes that runs them, in order; `Pipeline` is one."""

    _phase: str | None
    _hidden: dict[str, NoParams]
    _uses: tuple[Use, ...]
    _seen: set[tuple[Any, ...]]
    _needed: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]]

    @property
    def summaries(self) -> tuple[str, ...]:
        """Paths of the metrics that gather rows; see `fpatch.graph.stage.Summary`."""
        return tuple(p for p, n in self.items() if n.stage.definition.summary is not None)

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
        """Apply, and return also the inputs of metrics with a summary, by path, and the finite rows."""
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
            hidden = self._hidden.get(path)
            params = own_params(path, n, patch_params, patches) if hidden is None else hidden
            given = (params, drawn, n.inputs(values))
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
