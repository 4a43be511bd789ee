"""The loader, which chooses the images of each step by a pure function of a key and the step."""

import functools
import itertools
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_count
from fpatch.data.target_set import Dataset, check_dataset, draws
from fpatch.random.keys import check_key
from fpatch.runtime.parallel import ALONE, Ranks


def indices(
    key: Int64[Tensor, "2"], step: int, batch_size: int, n: int, replace: bool = False
) -> Int64[Tensor, "batch_size"]:
    """Return the indices of the images in the batch of a step.

    Epochs follow one another; epoch e has the order `permutation(fold_in(key, e), n)`. Batches cut this
    sequence into equal pieces, so that a batch may contain the end of an epoch and the start of the next.

    Args:
        key: The key of the data; the same for all steps.
        step: From 0.
        batch_size: At least 1; it may exceed n.
        n: The number of images.
        replace: Whether to draw each index independently instead.

    Returns:
        Int64 `[batch_size]`, in 0..n-1.

    Example:
        >>> from fpatch import data, random
        >>> [data.indices(random.key(0), step, batch_size=2, n=3).tolist() for step in range(3)]
        [[0, 2], [1, 0], [1, 2]]
    """
    if replace:
        return random.randint(random.fold_in(key, step), (batch_size,), 0, n)
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    words = tuple(key.tolist())
    return torch.cat([_order(words, e, n)[max(0, start - e * n) : stop - e * n] for e in epochs])


@functools.lru_cache(maxsize=4)  # a batch may reach over the end of an epoch
def _order(key: tuple[int, int], epoch: int, n: int) -> Int64[Tensor, "n"]:
    """Return the order of an epoch; cached, because its cost grows with the number of images."""
    return random.permutation(random.fold_in(torch.tensor(key), epoch), n)


def rows(
    image_ids: Int64[Tensor, "n"], num_draws: int
) -> tuple[Int64[Tensor, "rows"], Int64[Tensor, "rows"]]:
    """Return the rows of an evaluation: all images with draw 0, then all with draw 1, and so on.

    Args:
        image_ids: The images.
        num_draws: The number of rows per image.

    Returns:
        `image_id` and `draw`, int64 `[n * num_draws]`.

    Raises:
        ValueError: If `num_draws` is less than 1.

    Example:
        >>> import torch
        >>> from fpatch import data
        >>> data.rows(torch.tensor([4, 7]), num_draws=2)
        (tensor([4, 7, 4, 7]), tensor([0, 0, 1, 1]))
    """
    check_count("rows: num_draws", num_draws)
    return image_ids.repeat(num_draws), torch.arange(num_draws).repeat_interleave(len(image_ids))


@dataclass(frozen=True)
class Loader:
    """Batches for training, in the order of `indices`.

    A loop over it is one epoch: `len(loader)` batches from step 0, which show every image. Every loop gives
    the same batches; `batches(start)` goes on without end, as training does.

    Attributes:
        dataset: The source of images.
        key: The key of the order.
        batch_size: The rows of a batch, over all processes.
        replace: Whether to draw with replacement instead of by epochs.
        device: The device of the scenes; see `fpatch.data.TargetSet.batch`.
        ranks: The processes that train together. Each loads its own rows of a batch, with their `draw` in the
            whole batch.

    Example:
        >>> import tempfile
        >>> from fpatch import data, random
        >>> from fpatch.demo.tiny import tiny_study
        >>> scenes = tiny_study(tempfile.mkdtemp()).data.open().split("train")
        >>> batch = data.Loader(scenes, random.key(0), batch_size=4).batch(step=0)
        >>> batch["image_id"].sort().values, batch["draw"].sort().values
        (tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))
        >>> loader = data.Loader(scenes, random.key(0), batch_size=1)
        >>> len(loader), sorted(batch["image_id"].item() for batch in loader)
        (2, [0, 1])
    """

    dataset: Dataset
    key: Int64[Tensor, "2"]
    batch_size: int
    replace: bool = False
    device: torch.device | str | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        check_dataset("Loader(dataset)", self.dataset)
        check_key(self.key)
        check_count("Loader: batch_size", self.batch_size)
        self.ranks.rows(self.batch_size)  # checks that each process has a row

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step, counted from 0."""
        ids = self.dataset.image_ids
        picked = indices(self.key, step, self.batch_size, len(ids), self.replace)
        own = self.ranks.rows(self.batch_size)
        return self.dataset.batch(ids[picked][own], draws(ids[picked])[own], device=self.device)

    def __len__(self) -> int:
        """The batches of an epoch: the fewest that show every image."""
        return -(-len(self.dataset.image_ids) // self.batch_size)

    def __iter__(self) -> Generator[dict[str, Tensor], None, None]:
        """Iterate over the batches of one epoch, from step 0."""
        with closing(self.batches()) as batches:
            yield from itertools.islice(batches, len(self))

    def batches(self, start: int = 0) -> Generator[dict[str, Tensor], None, None]:
        """Iterate over the batches from `start` on, without end; a thread prepares the next batch.

        Copies to a GPU run in a separate stream, in parallel with the computation of the batch before. An
        error of a batch is raised when that batch is requested. Closing the iterator ends the thread.
        """
        on_gpu = torch.device(self.device or "cpu").type == "cuda"
        stream = torch.cuda.Stream(self.device) if on_gpu else None
        with ThreadPoolExecutor(1, thread_name_prefix="fpatch-loader") as pool:
            ahead = pool.submit(self._prepare, start, stream)
            for step in itertools.count(start + 1):
                batch, copied = ahead.result()
                ahead = pool.submit(self._prepare, step, stream)
                if copied is not None:
                    reader = torch.cuda.current_stream(self.device)
                    reader.wait_event(copied)
                    for value in batch.values():
                        if value.is_cuda:
                            value.record_stream(reader)  # keeps its memory until the reader is done
                yield batch

    def _prepare(self, step: int, stream: torch.cuda.Stream | None) -> tuple[dict[str, Tensor], Any]:
        """Return the batch of a step, and the CUDA event of its completion, or None."""
        if stream is None:
            return self.batch(step), None
        with torch.cuda.stream(stream):
            return self.batch(step), stream.record_event()
