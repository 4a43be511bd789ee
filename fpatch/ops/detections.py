"""The format of detections, and the arithmetic of their scores.

    dense  before suppression, with every gradient, for losses
        boxes       [b, n, 4], or [b, n, c, 4] with a box for every class (two-stage detectors)
        logits      [b, n, c], the log-odds of every class
        objectness  [b, n], the log-odds of any object; only if the detector has it
    final  after suppression, of fixed length m, for metrics
        boxes [b, m, 4], scores [b, m], labels [b, m], valid [b, m]

Boxes are xyxy in pixels of the victim's input image. The score of a class is `sigmoid(logits)`, times
`sigmoid(objectness)` if the detector has it. A detector's softmax becomes the log-odds of its probabilities.
Labels are the library's own numbers. Absent classes (the background of a softmax) and padded rows hold
`ABSENT`.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

ABSENT = -30.0
"""The log-odds of an absent class or row: its score and gradient are below 1e-13."""

SMALLEST = 1e-30
"""The smallest probability with log-odds; smaller ones are clamped to it."""

Score = Literal["class", "objectness", "product"]
"""The score of a box; without objectness the product is the score of the class."""


def log_scores(dense: Mapping[str, Tensor]) -> Float[Tensor, "b n c"]:
    """The logarithm of the score of every box and class, differentiable everywhere.

    Example:
        >>> import torch
        >>> from fpatch.ops.detections import log_scores
        >>> dense = {"logits": torch.zeros(1, 1, 1), "objectness": torch.zeros(1, 1)}
        >>> log_scores(dense).exp()
        tensor([[[0.2500]]])
    """
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
    p = _full(probability).clamp(SMALLEST, 1 - torch.finfo(probability.dtype).eps / 2)
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
    """Widen the answer of a victim of reduced precision to float32."""
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
    log_p = logits.log_softmax(-1)
    largest = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    others = logits.masked_fill(largest, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.where(largest, logits - others, log_p - torch.log1p(-log_p.masked_fill(largest, -1.0).exp()))
