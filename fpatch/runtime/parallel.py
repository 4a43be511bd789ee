"""One patch on several devices: processes that hold some rows of every batch each, and step together.

A launcher starts the processes: torchrun, Ray Train, or whatever else sets the environment of
`torch.distributed`. What each has of a step is gathered and then summed in the order of the ranks, so that
all processes hold the same state, and the same run gives the same bits whatever the network does.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import optree
import torch
import torch.distributed as dist
from torch import Tensor

_ENDED = (
    "another process of this run has ended, or did not answer in time; its own output says why. When that is "
    "mended, start all of them again; `fpatch resume` goes on from the last checkpoint ({})"
)


class Ranks(NamedTuple):
    """The processes of a run, as one of them sees them. Every method but `rows` waits for all of them.

    Attributes:
        rank: The number of this process, from 0. Process 0 writes what there is to write.
        size: How many there are.
        group: By which tensors travel; None: the default one.
    """

    rank: int = 0
    size: int = 1
    group: "dist.ProcessGroup | None" = None

    def rows(self, num_rows: int) -> slice:
        """The rows of a batch that this process holds; numbers of rows differ by one at most.

        Raises:
            ValueError: If there are fewer rows than processes.
        """
        if num_rows < self.size:
            raise ValueError(
                f"train.batch_size must be at least the number of processes, got {num_rows} rows for "
                f"{self.size} processes; start fewer, or take a larger batch"
            )
        first, end = (-(-rank * num_rows // self.size) for rank in (self.rank, self.rank + 1))
        return slice(first, end)

    def gather(self, tree: Any) -> list[Any]:
        """The trees of all processes, in the order of their ranks.

        Args:
            tree: Of tensors [n, ...] on one device; n may be another one in every process, all else not.

        Raises:
            ConnectionError: If a process has ended, or does not answer in time.
            ValueError: If the rows of the processes are not of one form.
        """
        if self.size == 1:
            return [tree]
        leaves, spec = optree.tree_flatten(tree)
        rows = torch.cat([_to_bytes(leaf) for leaf in leaves], dim=1)
        shapes = torch.stack(self._exchange(torch.tensor(rows.shape, device=rows.device))).tolist()
        if len({width for _, width in shapes}) > 1:
            raise ValueError(
                f"the processes of a run must hold rows of one form, got rows of {[w for _, w in shapes]} "
                "bytes; start all of them with the same study and the same data"
            )
        padding = rows.new_zeros(max(count for count, _ in shapes) - len(rows), rows.shape[1])
        parts = self._exchange(torch.cat([rows, padding]))
        return [
            optree.tree_unflatten(spec, _from_bytes(part[:count], leaves))  # type: ignore[arg-type]
            for part, (count, _) in zip(parts, shapes, strict=True)
        ]

    def join(self, tree: Any) -> Any:
        """The rows of all processes, in the order of the whole batch."""
        parts = self.gather(tree)
        return tree if self.size == 1 else optree.tree_map(lambda *rows: torch.cat(rows), *parts)

    def tell(self, text: str) -> str:
        """What process 0 says; that of the others does not count."""
        said = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return bytes(self.gather(said)[0].tolist()).decode()

    def check_same(self, what: str, data: bytes) -> None:
        """Refuse to go on where processes do not hold the same.

        Raises:
            ValueError: With the first process that differs from process 0.
        """
        if self.size == 1:
            return
        digests = self.gather(torch.tensor(list(hashlib.sha256(data).digest()))[None])
        for rank, digest in enumerate(digests):
            if not torch.equal(digest, digests[0]):
                raise ValueError(
                    f"{what} must be the same in all processes, but that of process {rank} is not that of "
                    "process 0; start all of them with the same study, on devices of one kind, with the same "
                    "versions of everything"
                )

    def _exchange(self, own: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(parts, own, group=self.group)
        except RuntimeError as error:
            raise ConnectionError(_ENDED.format(str(error).splitlines()[0])) from error
        return parts


ALONE = Ranks()
"""One process."""


class Meeting(NamedTuple):
    """How processes find one another that no launcher has started.

    Attributes:
        store: What they share, such as a `torch.distributed.TCPStore`.
        rank: The number of this process.
        size: How many will come.
    """

    store: Any
    rank: int
    size: int


@contextmanager
def joined(
    timeout_s: float = 1800.0, device: str = "auto", meeting: Meeting | None = None
) -> Iterator[Ranks]:
    """Join the processes that this one was started with; alone if it was started alone.

    Tensors travel by gloo on a CPU and by NCCL between GPUs. Where somebody has called
    `torch.distributed.init_process_group` already, as Ray Train does, its choice of a device is left as it
    is, and so is its group; where that carries no tensors on a CPU, as one of NCCL alone, another is made
    beside it.

    Args:
        timeout_s: How long a process waits for the others. It must cover an evaluation, which process 0 does
            alone.
        device: As the study names it. For "auto" and "cuda" a process takes the GPU numbered LOCAL_RANK; else
            none is chosen, and tensors travel by gloo, since NCCL refuses processes that share a GPU.
        meeting: How to meet the others; None: as the environment says.

    Raises:
        ValueError: If the environment names a number of processes, and not how to meet them.
        ConnectionError: If they do not all come in time.
    """
    if dist.is_available() and dist.is_initialized():
        carries_all = "cpu:" in str(dist.get_backend_config())
        with nullcontext() if carries_all else _group(dist.new_group, _backend(device), timeout_s) as group:
            yield Ranks(dist.get_rank(), dist.get_world_size(), group)
        return
    if meeting is None:
        size = os.environ.get("WORLD_SIZE", "1")
        if size == "1":
            yield ALONE
            return
        names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in os.environ]:
            raise ValueError(
                f"the environment has WORLD_SIZE={size}, but no {missing[0]}; start the processes with "
                "torchrun, or unset WORLD_SIZE to train with one"
            )
        if _backend(device) != "gloo":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    how = (
        {} if meeting is None else {"store": meeting.store, "rank": meeting.rank, "world_size": meeting.size}
    )
    with _group(dist.init_process_group, _backend(device), timeout_s, **how):
        yield Ranks(dist.get_rank(), dist.get_world_size())


def _backend(device: str) -> str:
    """What tensors travel by."""
    own_gpu = device in ("auto", "cuda") and torch.cuda.is_available() and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if own_gpu else "gloo"


@contextmanager
def _group(make: Callable[..., Any], backend: str, timeout_s: float, **how: Any) -> Iterator[Any]:
    """A group of all processes, for as long as it is needed."""
    try:
        group = make(backend=backend, timeout=timedelta(seconds=timeout_s), **how)
    except RuntimeError as error:
        raise ConnectionError(_ENDED.format(str(error).splitlines()[0])) from error
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _to_bytes(x: Tensor) -> Tensor:
    """Tensor [n, ...] as bytes [n, w]."""
    return x.detach().reshape(len(x), math.prod(x.shape[1:])).contiguous().view(torch.uint8)


def _from_bytes(rows: Tensor, like: list[Any]) -> list[Tensor]:
    """Bytes [n, w] of some tensors as tensors of the same types and rows."""
    widths = [math.prod(x.shape[1:]) * x.element_size() for x in like]
    pieces = rows.split(widths, dim=1)
    return [
        piece.clone(memory_format=torch.contiguous_format).view(x.dtype).reshape(len(rows), *x.shape[1:])
        for piece, x in zip(pieces, like, strict=True)
    ]
