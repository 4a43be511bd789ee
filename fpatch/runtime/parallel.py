"""Data-parallel training of one patch: each process holds some rows of every batch, and all step together.

A launcher such as torchrun or Ray Train starts the processes and sets the environment of `torch.distributed`.
The parts of a step are gathered and summed in the order of the ranks. All processes therefore hold the same
state, and a run gives the same bits whatever the order of messages.
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
    "another process of this run has ended, or did not answer in time; its own output has the reason. Fix "
    "the cause and start all processes again; `fpatch resume` continues from the last checkpoint ({})"
)


class Ranks(NamedTuple):
    """The processes of a run, seen from one of them. Every method except `rows` waits for all processes.

    Attributes:
        rank: The number of this process, from 0. Process 0 alone writes files.
        size: The number of processes.
        group: The group of `torch.distributed` that carries tensors; None is the default group.

    Example:
        >>> from fpatch.runtime.parallel import Ranks
        >>> [Ranks(rank, size=3).rows(8) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
    """

    rank: int = 0
    size: int = 1
    group: "dist.ProcessGroup | None" = None

    def rows(self, num_rows: int) -> slice:
        """Return the rows of a batch that this process holds; processes differ by one row at most.

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
        """Gather the trees of all processes, in the order of their ranks.

        Args:
            tree: Tensors [n, ...] on one device; between processes, only n may differ.

        Raises:
            ConnectionError: If a process has ended, or does not answer in time.
            ValueError: If the rows of the processes differ in shape or dtype.
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
        """Concatenate the rows of all processes, in the order of the whole batch."""
        parts = self.gather(tree)
        return tree if self.size == 1 else optree.tree_map(lambda *rows: torch.cat(rows), *parts)

    def tell(self, text: str) -> str:
        """Return the text of process 0 in all processes; the texts of the others are ignored."""
        said = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return bytes(self.gather(said)[0].tolist()).decode()

    def check_same(self, what: str, data: bytes) -> None:
        """Check that all processes hold the same bytes.

        Args:
            what: The name of the bytes, for the error.
            data: The bytes.

        Raises:
            ValueError: If they do not; the message names the first process that differs from process 0.
        """
        if self.size == 1:
            return
        digests = self.gather(torch.tensor(list(hashlib.sha256(data).digest()))[None])
        for rank, digest in enumerate(digests):
            if not torch.equal(digest, digests[0]):
                raise ValueError(
                    f"{what} must be the same in all processes, but process {rank} differs from process 0; "
                    "start all of them with the same study, on devices of one kind, with the same "
                    "versions of everything"
                )

    def _exchange(self, own: Tensor) -> list[Tensor]:
        """Gather tensors of one shape from all processes."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        try:
            dist.all_gather(parts, own, group=self.group)
        except RuntimeError as error:
            raise ConnectionError(_ENDED.format(str(error).splitlines()[0])) from error
        return parts


ALONE = Ranks()
"""A run of one process."""


class Meeting(NamedTuple):
    """The rendezvous of processes that no launcher has started.

    Attributes:
        store: A shared store, such as a `torch.distributed.TCPStore`.
        rank: The number of this process.
        size: The number of processes.
    """

    store: Any
    rank: int
    size: int


@contextmanager
def joined(
    timeout_s: float = 1800.0, device: str = "auto", meeting: Meeting | None = None
) -> Iterator[Ranks]:
    """Join the other processes of a launch within a `with` block; a single process is `ALONE`.

    Tensors travel by gloo on a CPU and by NCCL between GPUs. If the process group of `torch.distributed` is
    initialized already, as Ray Train does, that group and the current GPU are kept. If that group carries no
    CPU tensors, a second group is made.

    Args:
        timeout_s: The longest wait for another process, in seconds. It must cover an evaluation, which
            process 0 does alone.
        device: The setting of the study. For "auto" and "cuda" a process takes the GPU numbered LOCAL_RANK.
            Otherwise no GPU is chosen and tensors travel by gloo, since NCCL refuses processes that share a
            GPU.
        meeting: The rendezvous; None takes it from the environment.

    Yields:
        The processes.

    Raises:
        ValueError: If the environment has a number of processes, but no rendezvous.
        ConnectionError: If a process does not join in time.

    Example:
        >>> from fpatch.runtime.parallel import joined
        >>> with joined() as ranks:
        ...     ranks.size
        1
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
    """Return the backends of `torch.distributed` for a device."""
    own_gpu = device in ("auto", "cuda") and torch.cuda.is_available() and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if own_gpu else "gloo"


@contextmanager
def _group(make: Callable[..., Any], backend: str, timeout_s: float, **how: Any) -> Iterator[Any]:
    """Make a group of all processes, and destroy it after the `with` block."""
    # Torch imports this module later by itself, and its defaults would keep the group, whose threads then may
    # abort the process at its exit.
    import torch.distributed.nn.functional  # noqa: F401

    try:
        group = make(backend=backend, timeout=timedelta(seconds=timeout_s), **how)
    except RuntimeError as error:
        raise ConnectionError(_ENDED.format(str(error).splitlines()[0])) from error
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _to_bytes(x: Tensor) -> Tensor:
    """View a tensor [n, ...] as bytes [n, w]."""
    return x.detach().reshape(len(x), math.prod(x.shape[1:])).contiguous().view(torch.uint8)


def _from_bytes(rows: Tensor, like: list[Any]) -> list[Tensor]:
    """Split bytes [n, w] into tensors with the dtypes and row shapes of `like`."""
    widths = [math.prod(x.shape[1:]) * x.element_size() for x in like]
    pieces = rows.split(widths, dim=1)
    return [
        piece.clone(memory_format=torch.contiguous_format).view(x.dtype).reshape(len(rows), *x.shape[1:])
        for piece, x in zip(pieces, like, strict=True)
    ]
