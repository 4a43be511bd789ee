"""Keys of rows and of nodes."""

from jaxtyping import Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.tree import is_concrete
from fpatch.core.types import Batch


def row_keys(key: Int64[Tensor, "*shape 2"], batch: Batch) -> Int64[Tensor, "b 2"]:
    """Derive the key of every row: `fold_in(fold_in(key, image_id), draw)`; row keys [b, 2] pass through.

    The draws of a row therefore do not depend on the size or order of the batch, nor on shards or workers.

    Raises:
        ValueError: If `key` is no key, or the batch lacks `image_id` or `draw`, or repeats a pair of them.

    Example:
        >>> import torch, fpatch
        >>> batch = {"image_id": torch.tensor([4, 9]), "draw": torch.tensor([0, 1])}
        >>> keys = fpatch.row_keys(fpatch.random.key(0), batch)
        >>> alone = fpatch.row_keys(fpatch.random.key(0), {name: value[1:] for name, value in batch.items()})
        >>> keys.shape, torch.equal(keys[1:], alone)
        (torch.Size([2, 2]), True)
    """
    if not isinstance(key, Tensor):
        raise ValueError(f"key must be a key tensor, got {key!r}; make one with fpatch.random.key(seed)")
    if key.ndim == 2:
        return key
    check_uses(batch)
    return random.fold_in(random.fold_in(key, batch["image_id"]), batch["draw"])


def check_uses(batch: Batch) -> None:
    """Check that no two rows of a batch share their draws.

    Raises:
        ValueError: If the batch lacks `image_id` or `draw`, has them for other rows, or
            repeats a pair of them.
    """
    for name in ("image_id", "draw"):
        if name not in batch:
            raise ValueError(
                f"batch must hold {name!r} [b], from which keys are derived; {nearest(name, batch)}"
            )
    image_id, draw = batch["image_id"], batch["draw"]
    if image_id.ndim != 1 or image_id.shape != draw.shape:
        raise ValueError(
            "batch['image_id'] and batch['draw'] must have one number per row [b], got shapes "
            f"{list(image_id.shape)} and {list(draw.shape)}"
        )
    if is_concrete(image_id):
        pairs = list(zip(image_id.tolist(), draw.tolist(), strict=True))
        if len(set(pairs)) < len(pairs):
            pair = next(p for p in pairs if pairs.count(p) > 1)
            raise ValueError(
                f"batch repeats (image_id, draw) = {pair}: both rows would have the same draws; "
                "number the uses of an image in `draw` (0, 1, ...)"
            )


def fold_path(keys: Tensor, path: str) -> Tensor:
    """Fold a path into keys, once per segment."""
    for segment in path.split("/"):
        keys = random.fold_in(keys, segment)
    return keys
