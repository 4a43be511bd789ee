"""Export a phase of a pipeline as ONNX, with the names of its values."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import optree
import torch
from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params
from fpatch.graph.names import needed_paths
from fpatch.graph.node import Node
from fpatch.graph.pipeline import Pipeline


class _Exported(nn.Module):
    """Values by position in, values by position out."""

    def __init__(
        self,
        pipeline: Pipeline,
        params: Params,
        names: Sequence[str],
        patches: Sequence[str],
        want: Sequence[str],
    ) -> None:
        super().__init__()
        self.pipeline, self.params = pipeline, dict(params)
        self.names, self.patches, self.want = list(names), list(patches), tuple(want)
        self.outputs: list[str] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, tensors[: len(self.names)], strict=True))
        given = dict(zip(self.patches, tensors[len(self.names) :], strict=True))
        values = self.pipeline.apply({**self.params, **given}, {}, batch, want=self.want)
        flat = [(name, *optree.tree_flatten_with_path(values[name])) for name in self.want]
        self.outputs = ["/".join(map(str, (name, *path))) for name, paths, *_ in flat for path in paths]
        return tuple(leaf for _, _, leaves, _ in flat for leaf in leaves)


def export_onnx(
    pipeline: Pipeline,
    path: str | Path,
    params: Params,
    batch: Batch,
    want: Sequence[str] | None = None,
    *,
    patch_inputs: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the nodes of a phase as an ONNX file, for any number of rows.

    Inputs and outputs have the names of the values; an entry of a value is `name/entry`.

    Args:
        pipeline: The pipeline of one phase, such as `pipeline.at("export")`.
        path: The file.
        params: The parameters, which become constants.
        batch: A few rows [b, ...], b at least 2, that show the shapes.
        want: The values to write; None: `pipeline.outputs()`.
        patch_inputs: Whether patches are inputs, under their names, and no constants.

    Returns:
        The names of the inputs and of the outputs.

    Raises:
        ImportError: If a package of the extra `onnx` is missing.
        ValueError: If a node cannot be exported, with all such nodes; or a name is missing in the batch.

    Example:
        >>> import fpatch
        >>> p = fpatch.pipeline({"light": fpatch.compose.exposure()}).at("export")
        >>> try:
        ...     fpatch.graph.export_onnx(p, "light.onnx", {}, {})
        ... except ValueError as error:
        ...     print(str(error).partition(",")[0])
        export_onnx: node 'light' (compose.exposure) draws stops
    """
    want = tuple(pipeline.outputs() if want is None else want)
    needed = {p: pipeline[p] for p in needed_paths(pipeline, want, ())}
    if reasons := [f"node {p!r} {why}" for p, n in needed.items() if (why := _why_not(n))]:
        raise ValueError(f"export_onnx: {'; '.join(reasons)}; name other values in want, or leave it out")
    try:  # torch's exporter imports both
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_onnx needs {error.name}: install fpatch[onnx]") from error
    part = Pipeline(needed, pipeline.phase).freeze(params)
    names, trained = part.required(), part.trainable()  # only patches are left to train
    for name in names:
        if name not in batch:
            raise ValueError(f"export_onnx: the batch lacks {name!r}; {nearest(name, batch)}")
    patches, constants = (trained, ()) if patch_inputs else ((), trained)
    model = _Exported(part, {name: params[name] for name in constants}, names, patches, want).eval()
    args = (*(batch[name] for name in names), *(params[name] for name in patches))
    rows = torch.export.Dim("rows", min=1)
    shapes = (*({0: rows} for _ in names), *({} for _ in patches))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.11, about code of its own
        model(*args)  # its outputs have names after a call
        torch.onnx.export(
            model,
            args,
            str(path),
            input_names=[*names, *patches],
            output_names=list(model.outputs),
            dynamic_shapes=(shapes,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return (*names, *patches), tuple(model.outputs)


def _why_not(n: Node) -> str | None:
    """Say why a node cannot be exported; None if it can."""
    d = n.stage.definition
    if d.fields:
        return f"({d.name}) draws {', '.join(d.fields)}, and an exported network draws nothing"
    if d.traits.eager or not d.traits.compile:
        return f"({d.name}) computes as much as its values ask for, which no graph can hold"
    if d.summary is not None:
        return f"({d.name}) gathers rows"
    return None
