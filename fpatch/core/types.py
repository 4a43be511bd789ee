"""The words that every other file uses."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Params = Mapping[str, Tensor]
"""What is trained: one tensor per patch (or per latent), by name."""

Batch = Mapping[str, Any]
"""Named tensors with leading axis b; always with `image_id` [b] and `draw` [b]."""

Values = dict[str, Any]
"""The inputs of a pipeline and the last value of every name that its nodes wrote."""

Sample = Mapping[str, Any]
"""What was drawn: per stage a flat dict of tensors [b, ...], per pipeline a dict of those by node."""


class Range(NamedTuple):
    """The closed interval that a setting is drawn from; `[low, high]` in a config file."""

    low: float
    high: float
