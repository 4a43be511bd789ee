"""Gaussian fields from integer bits and a table, equal bit for bit in eager, compiled and GPU code."""

import functools
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fpatch.random.keys import Key, check_key, check_shape, words_of
from fpatch.random.threefry import CACHED_WORDS, encrypt_into


def gaussian_field(key: Key, shape: Sequence[int]) -> Float32[Tensor, "..."]:
    """Draw a field of standard normals, equal bit for bit in eager, compiled, vmapped and GPU code.

    Each value is one of 65,536 quantiles, at (i + 0.5) / 65536 for a 16-bit index i. Values lie within 4.33
    and have variance 0.99998. A block of Threefry gives four values, the lower half of its first word first.
    JAX has no counterpart.

    Returns:
        Float32 `[..., *shape]`.

    Raises:
        ValueError: If the key or the shape is invalid.

    Example:
        >>> from fpatch import random
        >>> [round(x, 3) for x in random.gaussian_field(random.key(0), (4,)).tolist()]
        [-2.557, -0.206, -0.5, 0.255]
    """
    check_key(key)
    draw = _gaussian_tensors if torch.compiler.is_compiling() else _gaussian
    return draw(key, math.prod(check_shape(shape))).reshape((*key.shape[:-1], *shape))


@torch.library.custom_op("fpatch::gaussian", mutates_args=())
def _gaussian(key: Tensor, num: int) -> Tensor:
    """Draw normals [..., num] for keys [..., 2]; an operator, since `torch.func` cannot enter numpy."""
    draw = _gaussian_numpy if key.device.type == "cpu" else _gaussian_tensors
    return draw(key, num)


def _gaussian_tensors(key: Tensor, num: int) -> Tensor:
    word0, word1 = words_of(key, (-(-num // 4),))
    # the lower half of the lower word first, as it lies in memory
    return _quantiles((word1 << 32 | word0).view(torch.int16)[..., :num].int() & 0xFFFF)


@torch.library.custom_op("fpatch::quantiles", mutates_args=())
def _quantiles(index: Tensor) -> Tensor:
    """Look up normal quantiles at (index + 0.5) / 65536; an operator, whose results a compiler can keep."""
    return _table(index.device).index_select(0, index.flatten()).view(index.shape)


@functools.cache
def _table(device: torch.device) -> Tensor:
    return _QUANTILES.to(device)


@_quantiles.register_fake
def _(index: Tensor) -> Tensor:
    return index.new_empty(index.shape, dtype=torch.float32)


@_quantiles.register_vmap
def _(info: object, in_dims: tuple[int], index: Tensor) -> tuple[Tensor, int]:
    return _quantiles(index), in_dims[0]


@_gaussian.register_fake
def _(key: Tensor, num: int) -> Tensor:
    return key.new_empty((*key.shape[:-1], num), dtype=torch.float32)


@_gaussian.register_vmap
def _(info: object, in_dims: tuple[int, None], key: Tensor, num: int) -> tuple[Tensor, int]:
    return _gaussian(key.movedim(in_dims[0], 0), num), 0


def _gaussian_numpy(key: Tensor, num: int) -> Tensor:
    """Draw normals in pieces; each stays in the processor's cache from the counters to the normals."""
    keys, blocks = key.numpy().astype(np.uint32).reshape(-1, 2), -(-num // 4)
    out = np.empty((len(keys), num), np.float32)
    table, together = _QUANTILES.numpy(), max(1, CACHED_WORDS // max(1, blocks))

    def fill(piece: tuple[int, int]) -> None:
        row, start = piece
        own, stop = keys[row : row + together, None], min(start + CACHED_WORDS, blocks)
        count = np.arange(start, stop, dtype=np.uint32)
        word0, word1 = np.empty((2, len(own), len(count)), np.uint32)
        encrypt_into(word0, word1, (own[..., 0], own[..., 1]), (np.uint32(0), count))
        words = np.stack([word0, word1], axis=-1).astype("<u4", copy=False)
        drawn = out[row : row + together, 4 * start : 4 * stop]
        drawn[:] = table[words.view("<u2").reshape(len(own), -1)[:, : drawn.shape[1]]]

    pieces = [(r, start) for r in range(0, len(keys), together) for start in range(0, blocks, CACHED_WORDS)]
    num_threads = min(torch.get_num_threads(), len(keys) * blocks // _WORDS_OF_A_THREAD)
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:  # numpy releases the interpreter lock while it computes
            deque(pool.map(fill, pieces), maxlen=0)
    else:
        deque(map(fill, pieces), maxlen=0)
    return torch.from_numpy(out).reshape(*key.shape[:-1], num)


_WORDS_OF_A_THREAD = 2**19
"""Words from which on a thread pays; below, two of them wait for the lock longer than they compute."""

_QUANTILES = torch.special.ndtri(
    (torch.arange(2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16
).float()
"""Normal quantiles at (i + 0.5) / 65536."""
