"""The format of detections, their types, and the arithmetic of their scores.

    dense  before suppression, with every gradient, for losses
        boxes       [b, n, 4], or [b, n, c, 4] with a box for every class (two-stage detectors)
        logits      [b, n, c], the log-odds of every class
        objectness  [b, n], the log-odds of any object; only if the detector has it
    final  after suppression, of fixed length m, for metrics
        boxes [b, m, 4], scores [b, m], labels [b, m], valid [b, m]

Boxes are xyxy in pixels of the victim's input image. The score of a class is `sigmoid(logits)`, times
`sigmoid(objectness)` if the detector has it. A detector's softmax becomes the log-odds of its probabilities.
Labels are the library's own numbers. Absent classes (the background of a softmax) and padded rows hold
`ABSENT`. Stages read an entry by `read_dense` or `read_final`, in float32 at least: the area of a box of
300 x 300 pixels is infinite in float16.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.tree import is_concrete

ABSENT = -30.0
"""The log-odds of an absent class or row: its score and gradient are below 1e-13."""

SMALLEST = 1e-30
"""The smallest probability with log-odds; smaller ones are clamped to it."""

Score = Literal["class", "objectness", "product"]
"""The score of a box; without objectness the product is the score of the class."""


MAKERS = {
    "final": "add the node infer.suppress() after the victim (in TOML [pipeline.suppress], "
    'stage = "infer.suppress"), in the phases of its readers',
    "dense": "let the victim answer all boxes before suppression, as infer.detector does",
}
"""How a pipeline gets an entry of `detections`."""

_ROUNDING = 1e-3
"""A score may exceed 1 by this much, as one that was computed in half precision does."""

_PARTS = {"dense": ("boxes", "logits"), "final": ("boxes", "scores", "labels", "valid")}


def read_dense(detections: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entry `dense`, in float32 at least.

    Raises:
        ValueError: If there is no such entry, or it lacks a part; the error names the node to add.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import read_dense
        >>> dense = {"boxes": torch.tensor([[[0, 0, 8, 8]]]), "logits": torch.zeros(1, 1, 1).half()}
        >>> {name: part.dtype for name, part in read_dense({"dense": dense}).items()}
        {'boxes': torch.float32, 'logits': torch.float32}
    """
    return _read(detections, "dense")


def read_final(detections: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entry `final`: boxes and scores in float32 at least, labels int64, valid bool.

    Raises:
        ValueError: If there is no such entry, it lacks a part, or a score is outside 0..1, so that no
            threshold means anything. The error names the node to add, or the score.

    Example:
        >>> from fpatch.ops.detections import read_final
        >>> try:
        ...     read_final({"dense": {}})
        ... except ValueError as error:
        ...     print(str(error)[:86])
        `detections` has no entry 'final', only 'dense'; add the node infer.suppress() after t
    """
    final = _read(detections, "final")
    if is_concrete(final["scores"]):
        scores = final["scores"][final["valid"]]
        outside = (scores < 0) | (scores > 1 + _ROUNDING)
        if len(bad := scores[outside & scores.isfinite()]):  # what is not finite counts as no answer
            raise ValueError(
                f"`detections`: scores of the entry 'final' must be within 0..1, got {float(bad[0]):.6g}; "
                "divide percentages by 100, and put logits through a sigmoid"
            )
    return final


def _read(detections: Mapping[str, Any], entry: str) -> dict[str, Tensor]:
    if entry not in detections:
        there = ", ".join(map(repr, detections)) or "nothing"
        raise ValueError(f"`detections` has no entry {entry!r}, only {there}; {MAKERS[entry]}")
    found: Mapping[str, Tensor] = detections[entry]
    if missing := [part for part in _PARTS[entry] if part not in found]:
        raise ValueError(
            f"`detections`: the entry {entry!r} must have {', '.join(_PARTS[entry])}, but lacks "
            f"{missing[0]!r}; write it in the stage that makes the entry"
        )
    return widen_detections(found)


def widen_detections(entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an entry to float32 at least, with labels int64 and valid bool.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import widen_detections
        >>> widen_detections({"scores": torch.ones(1, dtype=torch.float64), "valid": torch.tensor([1])})
        {'scores': tensor([1.], dtype=torch.float64), 'valid': tensor([True])}
    """
    return {name: _typed(name, part, _full) for name, part in entry.items()}


def convert_answer(answer: Any, dtype: torch.dtype, name: str = "logits") -> Any:
    """Convert the answer of a model: numbers to a type of floats, labels to int64, valid to bool.

    Whole numbers under another name than those of detections stay.

    Args:
        answer: A tensor, or mappings, lists and tuples of tensors.
        dtype: The type of the numbers.
        name: The name of a tensor that has none.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import convert_answer
        >>> convert_answer({"boxes": torch.tensor([1, 2]), "labels": torch.tensor([1.0])}, torch.float32)
        {'boxes': tensor([1., 2.]), 'labels': tensor([1])}
    """
    if isinstance(answer, Tensor):
        return _typed(name, answer, lambda x: x.to(dtype))
    if isinstance(answer, Mapping):
        return {key: convert_answer(part, dtype, str(key)) for key, part in answer.items()}
    if type(answer) in (list, tuple):
        return type(answer)(convert_answer(part, dtype, name) for part in answer)
    return answer


def _typed(name: str, part: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Convert one part of detections to its type, by its name."""
    if name in ("labels", "valid"):
        return part.to(torch.int64 if name == "labels" else torch.bool)
    is_number = part.is_floating_point() or name in ("boxes", "scores", "logits", "objectness")
    return convert(part) if is_number else part


def log_scores(dense: Mapping[str, Tensor]) -> Float[Tensor, "b n c"]:
    """The logarithm of the score of every box and class, differentiable everywhere.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import log_scores
        >>> dense = {"logits": torch.zeros(1, 1, 1), "objectness": torch.zeros(1, 1)}
        >>> log_scores(dense).exp()
        tensor([[[0.2500]]])
    """
    dense = widen_detections(dense)
    scores = F.logsigmoid(dense["logits"])  # the bits of sigmoid depend on the position
    return scores + F.logsigmoid(dense["objectness"])[..., None] if "objectness" in dense else scores


def score_logits(dense: Mapping[str, Tensor], score: Score = "product") -> Float[Tensor, "b n c"]:
    """The log-odds of a score: of every box and class, or [b, n, 1] for the objectness.

    The log-odds of a product `1 / ((1 + exp(-x)) (1 + exp(-y)))` are `-log(exp(-x) + exp(-y) + exp(-x - y))`.
    They are finite and have a gradient even where the product rounds to 0 or 1.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import score_logits
        >>> dense = {"logits": torch.zeros(1, 1, 1), "objectness": torch.zeros(1, 1)}
        >>> score_logits(dense).sigmoid()
        tensor([[[0.2500]]])
    """
    dense = widen_detections(dense)
    if score == "objectness":
        return dense["objectness"][..., None]
    if score == "class" or "objectness" not in dense:
        return dense["logits"]
    x, y = torch.broadcast_tensors(dense["logits"], dense["objectness"][..., None])
    return -torch.stack([-x, -y, -x - y]).logsumexp(0)


def boxes_of(dense: Mapping[str, Tensor], labels: Int64[Tensor, "b n"]) -> Float[Tensor, "b n 4"]:
    """The box of every entry for its label.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import boxes_of
        >>> dense = {"boxes": torch.arange(8.0).view(1, 1, 2, 4)}
        >>> boxes_of(dense, torch.tensor([[1]]))
        tensor([[[4., 5., 6., 7.]]])
    """
    boxes = dense["boxes"]
    if boxes.ndim == 3:
        return boxes
    return boxes.gather(2, labels[..., None, None].expand(*labels.shape, 1, 4))[:, :, 0]


def log_odds(probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(p / (1 - p))`: inverts a sigmoid inside the victim, gradient included.

    A probability rounded to 1 counts as the largest number below 1 of its type, 1 - 2^-24 or in bfloat16
    1 - 2^-8, and has no gradient. The result is float32 or wider.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import log_odds
        >>> log_odds(torch.tensor([0.5, 0.75])).exp()
        tensor([1., 3.])
    """
    of = probability.dtype if probability.is_floating_point() else torch.float32
    p = _full(probability).clamp(SMALLEST, 1 - torch.finfo(of).eps / 2)
    return p.log() - torch.log1p(-p)


def log_odds_of_log(log_probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(p / (1 - p))` from `log p`, exact even where p rounds to 1.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import log_odds_of_log
        >>> log_odds_of_log(torch.tensor([-1e-20])).round()
        tensor([46.])
    """
    log_p = _full(log_probability).clamp(max=-SMALLEST)
    return log_p - (-torch.expm1(log_p)).log()


def _full(x: Tensor) -> Tensor:
    """Widen numbers of reduced precision, and whole ones, to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def softmax_log_odds(logits: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape c"]:
    """The log-odds of the probabilities of a softmax: `z_k - logsumexp of the others`.

    Only the largest entry uses this formula, because its `1 - p` has no digits left. The others, at most 1/2,
    use `log p - log(1 - p)`, which is exact for them.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import softmax_log_odds
        >>> [round(x, 4) for x in softmax_log_odds(torch.tensor([0.0, 2.0])).tolist()]
        [-2.0, 2.0]
    """
    logits = _full(logits)
    log_p = logits.log_softmax(-1)
    largest = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    others = logits.masked_fill(largest, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.where(largest, logits - others, log_p - torch.log1p(-log_p.masked_fill(largest, -1.0).exp()))
