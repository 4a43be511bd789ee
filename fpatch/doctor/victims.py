"""Judgements on the form of a victim's answers: logits, the number of classes, and their repetition."""

from collections.abc import Iterator, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.tree import take_rows
from fpatch.core.types import Params, Values
from fpatch.doctor.clean import Asked, values_before, victims_of
from fpatch.doctor.findings import Finding
from fpatch.graph.node import Node
from fpatch.ops.detections import log_scores

NUM_REPEATED = 4
"""Images that a victim answers a second time."""

MIXED = 0.01
"""A larger difference of an answer alone and in a batch, relative to the answer, gives a warning."""


def judge_form(asked: Asked, names: Sequence[str]) -> Iterator[Finding]:
    """Find probabilities in place of logits, and a number of classes that is not that of the data."""
    for path, n in victims_of(asked.pipeline).items():
        if "logits" in n.writes:
            logits = asked.trace[path][n.writes["logits"]]
            if _are_probabilities(logits):
                what = (
                    "its answers lie in 0..1 and add up to 1: they are probabilities, and logits are "
                    "expected; leave the softmax out, or take the logarithm"
                )
                yield Finding("warning", path, what)
        else:
            logits = asked.trace[path][n.writes["detections"]]["dense"]["logits"]
            if bool(((logits >= 0) & (logits <= 1)).all()) and len(logits.unique()) > 2:
                what = (
                    "all its log-odds lie in 0..1: they seem to be probabilities, and every box reaches a "
                    "score of 0.5; leave the sigmoid out, or take torch.logit"
                )
                yield Finding("error", path, what)
        yield from _judge_number(path, logits.shape[-1], names)


def _are_probabilities(logits: Tensor) -> bool:
    inside = bool(((logits >= -1e-4) & (logits <= 1 + 1e-4)).all())
    return logits.shape[-1] > 1 and inside and bool(((logits.sum(-1) - 1).abs() < 1e-2).all())


_KNOWN = {
    80: ", as COCO has",
    91: ", as COCO counts them with a background and gaps",
    1000: ", as ImageNet has",
}


def _judge_number(path: str, count: int, names: Sequence[str]) -> Iterator[Finding]:
    """Warn if a victim answers another number of classes than the data name."""
    if not names or count == len(names):
        return
    if count < len(names):
        lost = f"{names[count]!r} is beyond its last one"
    else:
        lost = "labels are its own numbers, and may count other classes"
    what = (
        f"it answers {count} classes{_KNOWN.get(count, '')}, and the data name {len(names)}: {lost}; give "
        "data.classes all names in the victim's order"
    )
    yield Finding("warning", path, what)


def judge_repeats(asked: Asked, params: Params) -> Iterator[Finding]:
    """Ask each victim the same images twice, and the last of them alone."""
    for path, n in victims_of(asked.pipeline).items():
        rows = slice(0, NUM_REPEATED)
        inputs = take_rows(n.inputs(values_before(asked, path)), rows)
        sample = take_rows(asked.sample.get(path, {}), rows)
        first, again = (_ask(n, params, sample, inputs) for _ in range(2))
        apart = max(
            (float((a - b).abs().nan_to_num().max()) for a, b in _pairs(first, again) if a.numel()),
            default=0.0,
        )
        if apart > 0:
            what = (
                f"it answers the same images differently the second time, by up to {apart:.2g}: it draws "
                "random numbers or keeps a state, and no replay can repeat that; switch it off"
            )
            yield Finding("error", path, what)
            continue
        last = slice(len(_scores(n, first)) - 1, None)
        alone = _ask(n, params, take_rows(sample, last), take_rows(inputs, last))
        whole, alone = _scores(n, first)[last], _scores(n, alone)
        apart = float((whole - alone).abs().nan_to_num().max())
        if apart > MIXED * max(1.0, float(whole.abs().max())):
            what = (
                f"its answer for an image differs by {apart:.2g} if others are in the batch: it mixes rows; "
                "let it treat each image alone"
            )
            yield Finding("warning", path, what)


def _ask(n: Node, params: Params, sample: Any, inputs: Any) -> Values:
    with torch.no_grad():
        return n.stage.written(params, sample, inputs)


def _pairs(one: Values, other: Values) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the floating-point tensors of two answers; their shapes agree or every one differs."""
    for a, b in zip(optree.tree_leaves(one), optree.tree_leaves(other), strict=True):  # type: ignore[arg-type]
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point():
            yield (a, b) if a.shape == b.shape else (torch.zeros(1), torch.ones(1))


def _scores(n: Node, written: Values) -> Tensor:
    """Return numbers [b, c], which a detector's order of boxes does not change."""
    if "logits" in n.writes:
        return written["logits"]
    return log_scores(written["detections"]["dense"]).amax(1).exp()
