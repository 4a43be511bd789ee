"""Shared type aliases."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

Params = Mapping[str, Tensor]
"""The trained tensors, one per patch or latent, by name."""

Batch = Mapping[str, Any]
"""Named tensors with leading axis b, among them `image_id` [b] and `draw` [b]."""

Values = dict[str, Any]
"""The inputs of a pipeline and the last value of every name that its nodes write."""

Sample = Mapping[str, Any]
"""Draws: a flat dict of tensors [b, ...] for a stage, a dict of those by node for a pipeline."""


class Range(NamedTuple):
    """The closed interval of a setting's draws; `[low, high]` in a config file.

    A stage takes any pair of numbers in its place: `compose.exposure((-1.0, 1.0))`.

    Attributes:
        low: The smallest value.
        high: The largest value.

    Example:
        >>> from fpatch import Range
        >>> Range(-1.0, 1.0).high
        1.0
    """

    low: float
    high: float

    if TYPE_CHECKING:  # a setting is given as any pair and read as a range: factories convert it

        def __get__(self, instance: object, owner: type | None = None) -> "Range": ...

        def __set__(self, instance: object, value: "Range | tuple[float, float] | list[float]") -> None: ...
