"""Pipelines: named graphs of stages, immutable mappings of paths to nodes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.resource import find_networks
from fpatch.core.types import Params
from fpatch.graph import diagram
from fpatch.graph.contracts import find_uses
from fpatch.graph.mistakes import check_device, check_mapping
from fpatch.graph.names import output_names, required_names
from fpatch.graph.networks import choose_phase, share_networks
from fpatch.graph.node import Node, Part, encode_node, flatten, inside, number_nodes, slice_paths
from fpatch.graph.parameters import frozen_nodes, hidden_params, init_params, project_params, trainable_names
from fpatch.graph.precision import reduce_precision
from fpatch.graph.running import Runner
from fpatch.graph.weights import Loaded, load_params, save_params
from fpatch.graph.wiring import check_wiring, fill_settings


class Pipeline(Runner):
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
        self._hidden = hidden_params(self._nodes)
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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """A copy of the pipeline whose networks lie on a device, or whose victims compute in a type.

        Args:
            device: The device; see `Stage.to`. None: where they are.
            dtype: torch.float32, bfloat16 or float16, for convolutions and matrix products; see
                `fpatch.infer.lighter`. Answers stay float32.

        Raises:
            ValueError: If the device does not exist, or the type is another one.
        """
        made: Pipeline = self
        if device is not None:
            place, given = check_device("pipeline.to", device), share_networks(self._given)
            moved = {p: dataclasses.replace(n, stage=n.stage.to(place)) for p, n in given.items()}
            made = Pipeline(moved, self._phase)
        return made if dtype is None else reduce_precision(made, str(dtype).removeprefix("torch."))  # type: ignore

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

    def outputs(self, phase: str | None = None) -> tuple[str, ...]:
        """The names that nodes write and no later node reads."""
        return output_names(self if phase is None else self.at(phase))

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms that the nodes write."""
        return tuple(t for n in self.values() for t in n.terms)

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

    def save(self, folder: str | Path, params: Params) -> tuple[Path, ...]:
        """Write the parameters of each node to `folder/<path>.safetensors`; return the files.

        Raises:
            ValueError: If parameters of a node are missing.
            OSError: If a file cannot be written.
        """
        return save_params(self, folder, params)

    def load(self, folder: str | Path, key: Tensor) -> Loaded:
        """Read what `save` wrote; nodes without a file begin anew, from `init(key)`.

        Raises:
            ValueError: If the folder has no file of a node, or a file does not fit its node.
        """
        return load_params(self, folder, self.init(key))

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers of all networks, as `path/setting/name` and module."""
        for path, n in self.items():
            for setting, model in find_networks(n.stage.config).items():
                for name, layer in model.named_modules():
                    yield "/".join(filter(None, (path, setting, name))), layer

    @property
    def phase(self) -> str | None:
        """The phase that was chosen; None before `at`."""
        return self._phase

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


def with_model(whole: Pipeline, path: str, model: nn.Module) -> Pipeline:
    """The pipeline with another network at a node, in evaluation mode; all draws stay.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.graph.pipeline import with_model
        >>> one, other = torch.nn.Flatten().eval(), torch.nn.Identity().eval()
        >>> p = fpatch.pipeline({"victim": fpatch.infer.classifier(one)})
        >>> with_model(p, "victim", other)["victim"].stage.config.model is other
        True
    """
    n = whole[path]
    stage = n.stage.definition.configured(dataclasses.replace(n.stage.config, model=model))
    return whole | {path: dataclasses.replace(n, stage=stage)}
