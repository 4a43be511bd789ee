"""One format for what detectors say, and the arithmetic of its scores.

    dense  before suppression, with every gradient: what losses read
        boxes       [b, n, 4], or [b, n, c, 4] where every class has a box of its own (two-stage detectors)
        logits      [b, n, c], the log-odds of every class
        objectness  [b, n], log-odds that there is anything at all; only where the detector has it
    final  after suppression, of fixed length m: what metrics read
        boxes [b, m, 4], scores [b, m], labels [b, m], valid [b, m]

Boxes are xyxy in pixels of the image that the victim was given. The score of a class is `sigmoid(logits)`,
times `sigmoid(objectness)` where there is one, whatever the detector's own last step is: a softmax is turned
into the log-odds of its probabilities. Labels are the library's own numbers; a class that does not exist (the
background of a softmax) and a row that is only padding hold `ABSENT`.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

ABSENT = -30.0
"""Log-odds of what is not there: the score and its gradient are below 1e-13."""

SMALLEST = 1e-30
"""Probabilities below it have no finite log-odds in float32."""

Score = Literal["class", "objectness", "product"]
"""Which score of a box is meant; without objectness the product is that of the class."""


def log_scores(dense: Mapping[str, Tensor]) -> Float[Tensor, "b n c"]:
    """Logarithm of the score of every box and class, differentiable everywhere."""
    scores = F.logsigmoid(dense["logits"])  # sigmoid changes bits with position
    return scores + F.logsigmoid(dense["objectness"])[..., None] if "objectness" in dense else scores


def score_logits(dense: Mapping[str, Tensor], score: Score = "product") -> Float[Tensor, "b n c"]:
    """Log-odds of a score of every box and class, or [b, n, 1] of its objectness.

    Of a product `1 / ((1 + exp(-x)) (1 + exp(-y)))` they are `-log(exp(-x) + exp(-y) + exp(-x - y))`: finite,
    with a gradient, where the product itself is 0 or 1.
    """
    if score == "objectness":
        return dense["objectness"][..., None]
    if score == "class" or "objectness" not in dense:
        return dense["logits"]
    x, y = torch.broadcast_tensors(dense["logits"], dense["objectness"][..., None])
    return -torch.stack([-x, -y, -x - y]).logsumexp(0)


def boxes_of(dense: Mapping[str, Tensor], labels: Int64[Tensor, "b n"]) -> Float[Tensor, "b n 4"]:
    """The box that every entry has for the class given."""
    boxes = dense["boxes"]
    if boxes.ndim == 3:
        return boxes
    return boxes.gather(2, labels[..., None, None].expand(*labels.shape, 1, 4))[:, :, 0]


def log_odds(probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(p / (1 - p))`: undoes a sigmoid that is already part of the victim, gradient included.

    What was rounded to 1 counts as the largest number below 1 of its type, 1 - 2^-24 or in bfloat16 1 - 2^-8,
    and has no gradient any more. At least in float32.
    """
    p = _full(probability).clamp(SMALLEST, 1 - torch.finfo(probability.dtype).eps / 2)
    return p.log() - torch.log1p(-p)


def log_odds_of_log(log_probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(p / (1 - p))` from `log p`, exact where p is so near 1 that only its logarithm can tell."""
    log_p = _full(log_probability).clamp(max=-SMALLEST)
    return log_p - (-torch.expm1(log_p)).log()


def _full(x: Tensor) -> Tensor:
    """In float32, where a victim of less precision (`infer.lighter`) answers in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def softmax_log_odds(logits: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape c"]:
    """Log-odds of the probabilities that a softmax gives: `z_k - logsumexp of the others`.

    The largest entry's is taken so as it stands, where `1 - p` would have no digits left; for the others, at
    most 1/2, `log p - log(1 - p)` has all of them.
    """
    log_p = logits.log_softmax(-1)
    largest = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    others = logits.masked_fill(largest, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.where(largest, logits - others, log_p - torch.log1p(-log_p.masked_fill(largest, -1.0).exp()))
