"""Threefry-2x32 with 20 rounds: two random words from a key and a counter.

Three implementations give the same words: Python's integers for a few blocks, numpy's uint32 on the CPU, and
int32 tensors on other devices and in compiled code.

References:
    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011), section 3.3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpatch.core.tree import is_concrete

MASK = 2**32 - 1
"""The mask of a 32-bit word."""

CACHED_WORDS = 2**16
"""Words per pass over the rounds; the working set stays in the processor's cache."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # of the key schedule; this and the rotations are the constants of Salmon et al.
_FEW_BLOCKS = 128  # up to this number, Python's integers are faster than numpy


def encrypt(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the counters (high, low) with the keys: int64 tensors of 32-bit words that broadcast."""
    # compiling the rounds takes seconds and pays for many blocks only
    traced = torch.compiler.is_compiling() and low.numel() > _FEW_BLOCKS
    return (_encrypt_tensors if traced else _encrypt)(key0, key1, high, low)


def is_few(key: Tensor, num: int = 1) -> bool:
    """Return whether `encrypt_few` is the fastest for `num` blocks of each key."""
    # inside a transform, an unwrapped tensor has no numpy array either
    inside = torch._C._are_functorch_transforms_active()
    return 0 < key.numel() * num <= 2 * _FEW_BLOCKS and is_concrete(key) and not inside


def encrypt_few(keys: np.ndarray, low: int | np.ndarray) -> Tensor:
    """Encrypt the counters (0, low) with keys [..., n, 2]; low is a number or [n]. Returns [..., n, 2].

    One of Python's integers holds all blocks side by side. A block takes 128 bits, with its first word in the
    lower half. An operation takes 50 ns; numpy takes 500 ns for any array.
    """
    num, size = keys.size // 2, 8 * keys.size
    ones = int.from_bytes(bytes([1, *[0] * 15]) * num, "little")
    mask = MASK * ones
    both = int.from_bytes(keys.astype("<i8", copy=False).tobytes(), "little")
    if isinstance(low, int):
        word1 = low * ones
    else:
        counters = np.zeros_like(keys, "<i8")
        counters[..., 0] = low
        word1 = int.from_bytes(counters.tobytes(), "little")
    key0, key1 = both & mask, both >> 64 & mask
    schedule = (key0, key1, key0 ^ key1 ^ _PARITY * ones)
    word0, word1 = key0, word1 + key1 & mask
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            word0 = word0 + word1 & mask
            word1 = (word1 << turn | word1 >> (32 - turn)) & mask ^ word0
        word0 = word0 + schedule[(group + 1) % 3] & mask
        word1 = word1 + schedule[(group + 2) % 3] + (group + 1) * ones & mask
    raw = bytearray((word1 << 64 | word0).to_bytes(size, "little"))
    words = np.frombuffer(raw, "<i8").astype(np.int64, copy=False)
    return torch.from_numpy(words).view(keys.shape)


@torch.library.custom_op("fpatch::threefry", mutates_args=())
def _encrypt(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt counters; an operator, since fake tensors and `torch.func` cannot enter numpy."""
    rounds = _encrypt_numpy if key0.device.type == "cpu" else _encrypt_tensors
    return rounds(key0, key1, high, low)


@_encrypt.register_fake
def _(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(key0.shape, key1.shape, high.shape, low.shape)
    return key0.new_empty(shape), key0.new_empty(shape)


@_encrypt.register_vmap
def _(
    info: object, in_dims: Sequence[int | None], *words: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    rank = max(word.ndim + (dim is None) for word, dim in zip(words, in_dims, strict=True))
    rows = [
        word if dim is None else word.movedim(dim, 0).unflatten(0, (-1, *(1,) * (rank - word.ndim)))
        for word, dim in zip(words, in_dims, strict=True)
    ]
    return _encrypt(*rows), (0, 0)


def _encrypt_tensors(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rounds in wrapping int32."""
    key0, key1, word0, word1 = (words.to(torch.int32) for words in (key0, key1, high, low))
    schedule = (key0, key1, key0 ^ key1 ^ _PARITY)
    word0, word1 = word0 + key0, word1 + key1
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            word0 = word0 + word1
            word1 = (word1 << turn | word1 >> (32 - turn) & (1 << turn) - 1) ^ word0
        word0 = word0 + schedule[(group + 1) % 3]
        word1 = word1 + schedule[(group + 2) % 3] + (group + 1)
    return word0.long() & MASK, word1.long() & MASK


def _encrypt_numpy(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rounds in wrapping uint32, in pieces of the broadcast arrays."""
    with np.nditer(
        [key0.numpy(), key1.numpy(), high.numpy(), low.numpy(), None, None],
        ["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[np.uint32] * 6,
        order="C",
        casting="unsafe",
        buffersize=CACHED_WORDS,
    ) as pieces:
        for k0, k1, c0, c1, word0, word1 in pieces:
            encrypt_into(word0, word1, (k0, k1), (c0, c1))
        word0, word1 = pieces.operands[4:]
    return torch.from_numpy(word0.astype(np.int64)), torch.from_numpy(word1.astype(np.int64))


def encrypt_into(word0: Any, word1: Any, key: tuple[Any, Any], counter: tuple[Any, Any]) -> None:
    """Compute the rounds in wrapping uint32, in place; key and counter are (high, low) words."""
    (key0, key1), (high, low) = key, counter
    schedule = (key0, key1, key0 ^ key1 ^ np.uint32(_PARITY))
    np.add(high, key0, out=word0)
    np.add(low, key1, out=word1)
    spill = np.empty_like(word1)
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            word0 += word1
            np.right_shift(word1, 32 - turn, out=spill)
            word1 <<= turn
            word1 |= spill
            word1 ^= word0
        word0 += schedule[(group + 1) % 3]
        word1 += schedule[(group + 2) % 3]
        word1 += group + 1
