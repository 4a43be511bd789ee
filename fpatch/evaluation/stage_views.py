"""Views of a batch: images, scalars and histograms of every stage, with the patch and without."""

from typing import NamedTuple

import torch
from torch import Tensor

from fpatch.core.tree import device_of, to_device
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control


class StageViews(NamedTuple):
    """The views of a batch.

    Attributes:
        phase: The phase of the pipeline.
        shown: Views of the stages: images [c, h, w], scalars, and arrays [n] for histograms.
        patched: All values with the patch.
        without: All values with every opacity 0.
    """

    phase: str
    shown: dict[str, Tensor]
    patched: Values
    without: Values


def view_stages(
    pipeline: Pipeline, patch_params: Params, sample: Sample, batch: Batch, phase: str
) -> StageViews:
    """Call the `show` of every stage with the values it reads and writes, with the patch and without.

    The pipeline runs on the device of the parameters. The views are on the host.

    Args:
        pipeline: The pipeline of the phase.
        patch_params: The trained parameters.
        sample: The samples of the rows [b, ...].
        batch: The same rows.
        phase: The name of the phase.
    """
    shown: dict[str, Tensor] = {}
    patched, without = dict(batch), dict(batch)
    device = device_of(patch_params)
    given = to_device(batch, device)
    with torch.no_grad():
        traces = (
            pipeline.trace(patch_params, to_device(s, device), given) for s in (sample, control(sample))
        )
        with_patch, with_none = to_device(tuple(traces), "cpu")
    for path, n in pipeline.items():
        patched.update(with_patch[path])
        without.update(with_none[path])
        if n.stage.definition.show is not None:
            names = {**n.reads, **n.writes}
            views = [{own: v[r] for own, r in names.items() if r in v} for v in (patched, without)]
            for name, value in n.stage.definition.show(n.stage.config, *views).items():
                shown[f"{path}/{name}"] = torch.as_tensor(value)
    return StageViews(phase, shown, patched, without)
