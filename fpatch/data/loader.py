"""The loader: it alone picks photographs, by a pure function of a key and a step."""

import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.data.targets import Dataset, draws
from fpatch.runtime.parallel import ALONE, Ranks


def indices(
    key: Int64[Tensor, "2"], step: int, batch_size: int, n: int, replace: bool = False
) -> Int64[Tensor, "batch_size"]:
    """Which of n photographs make up the batch of a step.

    Epochs are laid end to end, epoch e in the order `permutation(fold_in(key, e), n)`; batches cut this line
    into equal pieces, so that one may reach over the end of an epoch.

    Args:
        key: The key of the data; the same for all steps.
        step: From 0.
        batch_size: Any, also more than n.
        n: Number of photographs.
        replace: Draw each independently instead.

    Returns:
        Integers in 0..n-1.
    """
    if replace:
        return random.randint(random.fold_in(key, step), (batch_size,), 0, n)
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    words = tuple(key.tolist())
    return torch.cat([_order(words, e, n)[max(0, start - e * n) : stop - e * n] for e in epochs])


@functools.lru_cache(maxsize=4)  # a batch may reach over the end of an epoch
def _order(key: tuple[int, int], epoch: int, n: int) -> Int64[Tensor, "n"]:
    """The photographs of an epoch, kept from batch to batch: it takes longer the more there are."""
    return random.permutation(random.fold_in(torch.tensor(key), epoch), n)


def rows(
    image_ids: Int64[Tensor, "n"], num_draws: int
) -> tuple[Int64[Tensor, "rows"], Int64[Tensor, "rows"]]:
    """The rows of an evaluation: every photograph `num_draws` times, all once before any comes again.

    Returns:
        `image_id` and `draw`.
    """
    check_number("rows: num_draws", num_draws, 1)
    return image_ids.repeat(num_draws), torch.arange(num_draws).repeat_interleave(len(image_ids))


@dataclass(frozen=True)
class Loader:
    """Batches for training: photographs in the order that `indices` gives.

    Attributes:
        dataset: Where the photographs come from.
        key: Decides the order.
        batch_size: Rows of a batch.
        replace: Draw with replacement instead of by epochs.
        device: Where the scenes go; see `fpatch.data.TargetSet.batch`.
        ranks: The processes that train together: each loads its own rows of every batch, with the `draw`
            that they have in the whole.
    """

    dataset: Dataset
    key: Int64[Tensor, "2"]
    batch_size: int
    replace: bool = False
    device: torch.device | str | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        check_number("Loader: batch_size", self.batch_size, 1)
        self.ranks.rows(self.batch_size)  # refuses too few for all

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of a step, counted from 0."""
        ids = self.dataset.image_ids
        picked = indices(self.key, step, self.batch_size, len(ids), self.replace)
        own = self.ranks.rows(self.batch_size)
        return self.dataset.batch(ids[picked][own], draws(ids[picked])[own], device=self.device)

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of all steps from `start` on, without end; a thread prepares the next one meanwhile.

        To a GPU it copies in a stream of its own, beside the computation of the batch before. An error of a
        batch is raised where that batch would come. Closing the iterator ends the thread.
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
                            value.record_stream(reader)  # its memory is not reused before the reader is done
                yield batch

    def _prepare(self, step: int, stream: torch.cuda.Stream | None) -> tuple[dict[str, Tensor], Any]:
        """The batch of a step, and the CUDA event after which it is complete, or None."""
        if stream is None:
            return self.batch(step), None
        with torch.cuda.stream(stream):
            return self.batch(step), stream.record_event()
