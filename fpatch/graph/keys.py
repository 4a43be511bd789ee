"""Keys of rows and of nodes."""

from jaxtyping import Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.tree import is_concrete
from fpatch.core.types import Batch


def row_keys(key: Int64[Tensor, "*shape 2"], batch: Batch) -> Int64[Tensor, "b 2"]:
    """The key of every row: `fold_in(fold_in(key, image_id), draw)`; row keys [b, 2] pass through.

    A row's draws therefore do not change with the size of the batch, its order, a shard or a worker.

    Raises:
        ValueError: If `key` is none, or if the batch lacks `image_id` or `draw`, or repeats a pair of them.
    """
    if not isinstance(key, Tensor):
        raise ValueError(f"key must be a key, which fpatch.random.key(seed) makes, got {key!r}")
    if key.ndim == 2:
        return key
    check_uses(batch)
    return random.fold_in(random.fold_in(key, batch["image_id"]), batch["draw"])


def check_uses(batch: Batch) -> None:
    """Refuse a batch in which two rows would have the same draws.

    Raises:
        ValueError: If it lacks `image_id` or `draw`, or repeats a pair of them.
    """
    for name in ("image_id", "draw"):
        if name not in batch:
            raise ValueError(
                f"batch must hold {name!r} [b], which keys are derived from; {nearest(name, batch)}"
            )
    image_id, draw = batch["image_id"], batch["draw"]
    if is_concrete(image_id):
        pairs = list(zip(image_id.tolist(), draw.tolist(), strict=True))
        if len(set(pairs)) < len(pairs):
            pair = next(p for p in pairs if pairs.count(p) > 1)
            raise ValueError(
                f"batch repeats (image_id, draw) = {pair}: both rows would have the same draws; "
                "number the uses of a photograph in `draw` (0, 1, ...)"
            )


def fold_path(keys: Tensor, path: str) -> Tensor:
    """Fold a path into keys, once per segment."""
    for segment in path.split("/"):
        keys = random.fold_in(keys, segment)
    return keys
