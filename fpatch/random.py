"""Random numbers as functions of explicit keys, equal bit for bit to `jax.random`.

A key is an int64 tensor `[2]` of two uint32 words; an array of keys is `[..., 2]`. Every draw takes one or
the other: keys `[..., 2]` and a shape S give `[..., *S]`, each row what JAX draws for that key alone. A key
is drawn from once; further ones are derived by meaning, `fold_in(key, "tilt")`.

Words come from Threefry (`fpatch.threefry`), counted as in JAX's `jax_threefry_partitionable` mode. From
words to values, arithmetic is exact or rounded once, so that draws are equal in eager, vmapped, compiled and
GPU code. `normal` alone is not (use `gaussian_field`).

References:
    JAX enhancement proposal 263, "JAX PRNG design"; jax/_src/random.
"""

import functools
import math
import operator
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from fpatch.core.tree import is_concrete
from fpatch.threefry import CACHED_WORDS, MASK, encrypt, encrypt_few, encrypt_into, is_few

Key: TypeAlias = Tensor
"""A key, or an array of keys: int64 `[..., 2]`, each entry in [0, 2**32)."""


def key(seed: int) -> Int64[Tensor, "2"]:
    """Make the root key of a seed.

    Args:
        seed: In [0, 2**64). Its upper 32 bits are the first word, as in JAX with 64-bit types enabled. In its
            default 32-bit mode JAX drops them: there, the two agree for seeds below 2**32.

    Raises:
        ValueError: If the seed is outside that range.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}; take it modulo 2**64")
    return torch.tensor([seed >> 32, seed & MASK], dtype=torch.int64)


def split(key: Key, num: int = 2) -> Int64[Tensor, "*keys num 2"]:
    """Make `num` keys from each key."""
    return torch.stack(_blocks(key, (num,)), dim=-1)


def fold_in(key: Key, data: int | str | Tensor) -> Int64[Tensor, "*keys 2"]:
    """Make the key that belongs to `data` under each key.

    Args:
        key: `[..., 2]`.
        data: An int in [0, 2**32), a name (its CRC-32 is folded in) or an integer tensor of such numbers that
            broadcasts against the leading axes of the keys: a key with data `[b]` gives row keys `[b, 2]`.
            Where values cannot be read (compiled, GPU) the low 32 bits count.

    Raises:
        ValueError: If the key or the data are of another kind, do not broadcast, or a number is out of range.
    """
    _check_key(key)
    if isinstance(data, str):
        data = zlib.crc32(data.encode())
    if not isinstance(data, Tensor):
        data = operator.index(data)
        if 0 <= data <= MASK and is_few(key):
            return encrypt_few(key.numpy(), data)
        data = torch.tensor(data)
    if data.is_floating_point() or data.dtype == torch.bool:
        raise ValueError(f"data must be a tensor of integers, got {data.dtype}; fold in an index or a name")
    data = data.to(key.device, torch.int64, non_blocking=key.device.type != "cpu")
    try:
        torch.broadcast_shapes(key.shape[:-1], data.shape)
    except RuntimeError:
        raise ValueError(
            f"data must broadcast against keys {list(key.shape[:-1])}, got {list(data.shape)}"
        ) from None
    _require((data >= 0) & (data <= MASK), "data must be in [0, 2**32)", data=data)
    key0, key1 = key.unbind(-1)
    return torch.stack(encrypt(key0, key1, torch.zeros_like(data), data), dim=-1)


def bits(key: Key, shape: Sequence[int] = ()) -> Int64[Tensor, "..."]:
    """Draw 32 random bits each: integers in [0, 2**32)."""
    word0, word1 = _blocks(key, shape)
    return word0 ^ word1


def uniform(
    key: Key, shape: Sequence[int] = (), minval: float | Tensor = 0.0, maxval: float | Tensor = 1.0
) -> Float32[Tensor, "..."]:
    """Draw numbers uniform in [minval, maxval), in steps of 2**-23 of the width.

    Args:
        key: `[..., 2]`.
        shape: S, for each key.
        minval: Inclusive; a number or a tensor that broadcasts to the result.
        maxval: Exclusive, likewise; `minval` itself gives `minval`.

    Returns:
        Float32 `[..., *S]`, differentiable in the bounds.

    Raises:
        ValueError: If `minval <= maxval` does not hold, or a bound does not broadcast to the result.
    """
    words = bits(key, shape)
    if isinstance(minval, int | float) and isinstance(maxval, int | float) and is_concrete(words):
        return _between(words, minval, maxval)
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (minval, maxval))
    _check_broadcast(words, minval=low, maxval=high)
    _require(low <= high, "uniform: minval must be at most maxval", minval=minval, maxval=maxval)
    # XLA contracts the product and the sum into one rounding. In float64 the product (23 + 24 bits) is exact,
    # so that this rounds likewise, whether or not a compiler contracts it.
    unit = (words >> 9).to(torch.float64) * 2**-23
    return torch.maximum((unit * (high - low).double() + low.double()).float(), low)


def _between(words: Tensor, minval: float, maxval: float) -> Tensor:
    """`uniform` from its bits, by the same arithmetic in a third of the time."""
    if not minval <= maxval:
        raise ValueError(f"uniform: minval must be at most maxval, got minval={minval}, maxval={maxval}")
    low, high = np.float32(minval), np.float32(maxval)
    unit = (words >> 9).to(torch.float64) * 2**-23
    return (unit * float(high - low) + float(low)).float().clamp(min=float(low))


def randint(
    key: Key, shape: Sequence[int], minval: int | Tensor, maxval: int | Tensor
) -> Int64[Tensor, "..."]:
    """Draw integers uniform in [minval, maxval), the values that JAX draws as int32.

    Bounds are ints or integer tensors that broadcast to the result, `[..., *shape]`.

    Raises:
        ValueError: If `-2**31 <= minval < maxval < 2**31` does not hold, or a bound is no integer or does not
            broadcast.
    """
    low, high = torch.as_tensor(minval), torch.as_tensor(maxval)
    if low.is_floating_point() or high.is_floating_point():
        raise ValueError(f"randint: bounds must be integers, got {low.dtype} and {high.dtype}; round them")
    low, high = low.long(), high.long()
    holds = (low >= -(2**31)) & (low < high) & (high < 2**31)
    _require(holds, "randint: must be -2**31 <= minval < maxval < 2**31", minval=minval, maxval=maxval)
    upper, lower = bits(split(key), shape).unbind(key.ndim - 1)
    _check_broadcast(lower, minval=low, maxval=high)
    span = high - low
    # The 64-bit number (upper, lower) modulo the span. As in JAX, the square wraps to 32 bits.
    power = 2**16 % span
    power = (power * power & MASK) % span
    return low + (upper % span * power + lower % span) % span


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Sequence[int] = ()) -> Bool[Tensor, "..."]:
    """Draw True with probability `p`, a number or a tensor that broadcasts to the result `[..., *shape]`.

    Raises:
        ValueError: If `p` is not within [0, 1], or does not broadcast to the result.
    """
    unit = uniform(key, shape)
    chance = torch.as_tensor(p, dtype=torch.float32)
    _check_broadcast(unit, p=chance)
    _require((chance >= 0) & (chance <= 1), "bernoulli: p must be a probability in [0, 1]", p=p)
    return unit < chance


def permutation(key: Key, x: int | Tensor) -> Shaped[Tensor, "..."]:
    """Shuffle `range(x)`, or the entries of `x` along its first axis, once per key.

    Returns:
        `[..., x]` int64, or `[..., *x.shape]`.

    Raises:
        ValueError: If `x` is negative, or a tensor without axes.
    """
    num = _count("permutation: x", x)
    order = torch.arange(num, device=key.device).expand(*key.shape[:-1], num)
    # Sorting by random words, again and again until equal words in every round are improbable.
    for _ in range(math.ceil(3 * math.log(max(1, num)) / math.log(MASK))):
        key, sort_key = split(key).unbind(-2)
        order = order.gather(-1, bits(sort_key, (num,)).argsort(dim=-1, stable=True))
    return x[order] if isinstance(x, Tensor) else order


def choice(
    key: Key,
    a: int | Tensor,
    shape: Sequence[int] = (),
    replace: bool = True,
    p: Sequence[float] | Tensor | None = None,
) -> Shaped[Tensor, "..."]:
    """Draw from `range(a)`, or from the entries of `a` along its first axis.

    With `p` and without replacement, the Gumbel top-k trick is computed in float64: an order that JAX, in
    float32, decides by the last bits of two logarithms may differ.

    Args:
        key: `[..., 2]`.
        a: How many to choose from, or the tensor `[n, ...]` of them.
        shape: S, for each key.
        replace: Whether one draw of a key may repeat an entry.
        p: Weight of each entry, `[n]`, by default equal; need not sum to 1.

    Returns:
        `[..., *S]` int64, or `[..., *S, *a.shape[1:]]`.

    Raises:
        ValueError: If there is nothing to choose from, too little without replacement, or `p` does not fit.
    """
    num, num_draws = _count("choice: a", a), math.prod(_check_shape(shape))
    if num == 0:
        raise ValueError("choice: a must have at least one entry, got none")
    if not replace and num_draws > num:
        raise ValueError(f"choice: shape {tuple(shape)} needs {num_draws} of {num} entries; use replace=True")
    result_shape = (*key.shape[:-1], *shape)
    if p is None and replace:
        index = randint(key, shape, 0, num)
    elif p is None:
        index = permutation(key, num)[..., :num_draws].reshape(result_shape)
    else:
        weight = torch.as_tensor(p, dtype=torch.float32, device=key.device)
        if weight.shape != (num,):
            raise ValueError(f"choice: p must have one weight per entry, [{num}], got {list(weight.shape)}")
        enough = (weight > 0).sum() >= (1 if replace else num_draws)
        _require((weight >= 0) & enough, "choice: p must be non-negative, and positive often enough", p=p)
        if replace:
            total = _cumsum(weight)
            index = torch.searchsorted(total, total[-1] * (1 - uniform(key, shape)))
        else:
            unit = uniform(key, (num,), minval=torch.finfo(torch.float32).tiny).double()
            gumbel = weight.double().log() - (-unit.log()).log()
            ranked = gumbel.argsort(dim=-1, descending=True, stable=True)
            index = ranked[..., :num_draws].reshape(result_shape)
    return a[index] if isinstance(a, Tensor) else index


def normal(key: Key, shape: Sequence[int] = ()) -> Float32[Tensor, "..."]:
    """Draw standard normals, within 8 units in the last place of JAX's; last bits vary with the execution.

    References:
        M. Giles, "Approximating the erfinv function", GPU Computing Gems 2 (2011), single precision.
    """
    unit = uniform(key, shape, minval=-1.0 + 2**-24)
    log = -torch.log1p(-unit * unit)
    in_tail = log >= 5.0
    log = torch.where(in_tail, log.sqrt() - 3.0, log - 2.5)
    value = torch.zeros_like(log)
    for center, tail in zip(_ERFINV_CENTER, _ERFINV_TAIL, strict=True):
        value = torch.where(in_tail, tail, center) + value * log
    return unit * value * math.sqrt(2)


def gaussian_field(key: Key, shape: Sequence[int]) -> Float32[Tensor, "..."]:
    """Draw standard normals for an image or a field, the same bits in eager, compiled, vmapped and GPU code.

    Each value is one of 65,536 quantiles, at (i + 0.5) / 65536 for a 16-bit index i: within 4.33, of variance
    0.99998. A block of Threefry gives four, the lower half of its first word first. JAX has no counterpart.

    Returns:
        Float32 `[..., *shape]`.
    """
    _check_key(key)
    draw = _gaussian_tensors if torch.compiler.is_compiling() else _gaussian
    return draw(key, math.prod(_check_shape(shape))).reshape((*key.shape[:-1], *shape))


@torch.library.custom_op("fpatch::gaussian", mutates_args=())
def _gaussian(key: Tensor, num: int) -> Tensor:
    """Normals [..., num] for keys [..., 2]; an operator, since `torch.func` cannot enter numpy."""
    draw = _gaussian_numpy if key.device.type == "cpu" else _gaussian_tensors
    return draw(key, num)


def _gaussian_tensors(key: Tensor, num: int) -> Tensor:
    word0, word1 = _blocks(key, (-(-num // 4),))
    # the lower half of the lower word first, as it lies in memory
    return _quantiles((word1 << 32 | word0).view(torch.int16)[..., :num].int() & 0xFFFF)


@torch.library.custom_op("fpatch::quantiles", mutates_args=())
def _quantiles(index: Tensor) -> Tensor:
    """Of the normal distribution at (index + 0.5) / 65536; an operator, whose results a compiler can keep."""
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
    """The same a piece at a time, each in the processor's cache from the counters to the normals."""
    table, rows = _QUANTILES.numpy(), key.numpy().astype(np.uint32).reshape(-1, 2)
    out = np.empty((len(rows), num), np.float32)

    def fill(piece: tuple[int, int]) -> None:
        row, start = piece
        count = np.arange(start, min(start + CACHED_WORDS, -(-num // 4)), dtype=np.uint32)
        word0, word1 = np.empty((2, len(count)), np.uint32)
        encrypt_into(word0, word1, (rows[row, 0], rows[row, 1]), (np.uint32(0), count))
        words = np.stack([word0, word1], axis=1).astype("<u4", copy=False)
        drawn = out[row, 4 * start : 4 * (start + len(count))]
        drawn[:] = table[words.view("<u2").reshape(-1)[: len(drawn)]]

    pieces = [(row, start) for row in range(len(rows)) for start in range(0, -(-num // 4), CACHED_WORDS)]
    num_threads = min(torch.get_num_threads(), len(pieces))
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:  # numpy lets go of the lock while it computes
            deque(pool.map(fill, pieces), maxlen=0)
    else:
        deque(map(fill, pieces), maxlen=0)
    return torch.from_numpy(out).reshape(*key.shape[:-1], num)


def _blocks(key: Key, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The two words of blocks 0, 1, ... of each key, `[..., *shape]` each, counted in row-major order."""
    _check_key(key)
    num, result_shape = math.prod(_check_shape(shape)), (*key.shape[:-1], *shape)
    if is_few(key, num):
        keys = key.numpy().reshape(-1, 1, 2).repeat(num, axis=1)
        word0, word1 = encrypt_few(keys, np.arange(num)).unbind(-1)
        return word0.reshape(result_shape), word1.reshape(result_shape)
    count = torch.arange(num, device=key.device)
    key0, key1 = key[..., None, :].unbind(-1)
    word0, word1 = encrypt(key0, key1, torch.zeros_like(count[:1]), count)
    return word0.reshape(result_shape), word1.reshape(result_shape)


def _cumsum(x: Float32[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """The running sum, rounded as XLA's on the CPU: by sixteens, then over the sums of those."""
    rows = pad(x, (0, -len(x) % 16)).unflatten(0, (-1, 16))
    sums = torch.stack(tuple(accumulate(rows.unbind(1))), dim=1)
    if len(x) > 16:
        sums = sums + pad(_cumsum(sums[:, -1])[:-1], (1, 0))[:, None]
    return sums.flatten()[: len(x)]


def _check_key(key: Key) -> None:
    if key.dtype != torch.int64 or key.ndim == 0 or key.shape[-1] != 2:
        raise ValueError(
            f"key must be an int64 tensor [..., 2], got {key.dtype} {list(key.shape)}; make it with key(seed)"
        )


def _check_shape(shape: Sequence[int]) -> Sequence[int]:
    if any(num < 0 for num in shape):
        raise ValueError(f"shape must have no negative number, got {tuple(shape)}")
    return shape


def _check_broadcast(result: Tensor, **values: Tensor) -> None:
    for name, value in values.items():
        try:
            value.expand(result.shape)
        except RuntimeError:
            raise ValueError(
                f"{name} must broadcast to the result {list(result.shape)}, got {list(value.shape)}"
            ) from None


def _require(holds: Tensor, rule: str, **values: object) -> None:
    """Refuse values that break a rule, where they can be read."""
    if is_concrete(holds) and not bool(holds.all()):
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"{rule}, got {given}")


def _count(name: str, x: int | Tensor) -> int:
    """How many entries `x` stands for: itself, or the length of its first axis."""
    if isinstance(x, Tensor):
        if x.ndim == 0:
            raise ValueError(f"{name} must be an int or have an axis, got a tensor []; pass int(x)")
        return x.shape[0]
    return _check_shape((operator.index(x),))[0]


_ERFINV_CENTER = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)

_QUANTILES = torch.special.ndtri(
    (torch.arange(2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16
).float()
"""The inverse normal distribution at (i + 0.5) / 65536."""
