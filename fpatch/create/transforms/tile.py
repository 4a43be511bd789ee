"""Repeat a patch in rows and columns."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import map_patches


@dataclass(frozen=True)
class Tile:
    """Number of copies, or the size to cover; exactly one of `grid` and `size` must be given.

    Attributes:
        grid: Rows and columns of copies.
        size: (height, width) to cover from the top left; the last copies are cut off.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.tensor([0.0, 1.0]).expand(3, 1, 2)}
        >>> create.tile(grid=(2, 2)).apply({}, {}, {"patch": patch})["patch"]["hood"][0].int()
        tensor([[0, 1, 0, 1],
                [0, 1, 0, 1]], dtype=torch.int32)
        >>> create.tile(size=(1, 3)).apply({}, {}, {"patch": patch})["patch"]["hood"][0].int()
        tensor([[0, 1, 0]], dtype=torch.int32)
    """

    grid: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.size is None):
            raise ValueError(
                f"tile takes exactly one of grid and size, got grid={self.grid}, size={self.size}"
            )
        for field, form, pair in (
            ("grid", "(rows, columns)", self.grid),
            ("size", "(height, width)", self.size),
        ):
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise ValueError(f"tile({field}) must be {form}, at least 1 each, got {tuple(pair)}")


def apply(config: Tile, patch_params: Params, sample: Sample, values: Values) -> Values:
    def tiled(name: str, patch: Tensor) -> Tensor:
        height, width = patch.shape[-2:]
        if config.grid is not None:
            rows, columns = config.grid
            return patch.repeat(*(1,) * (patch.ndim - 2), rows, columns)
        assert config.size is not None
        rows, columns = -(-config.size[0] // height), -(-config.size[1] // width)
        covering = patch.repeat(*(1,) * (patch.ndim - 2), rows, columns)
        return covering[..., : config.size[0], : config.size[1]]

    return {"patch": map_patches("tile", values["patch"], config.only, tiled)}


tile = define("tile", Tile, deterministic, apply, reads=("patch",), writes=("patch",))
