"""Random numbers as functions of explicit keys, equal bit for bit to `jax.random`.

A key is an int64 tensor `[2]` of two uint32 words; an array of keys is `[..., 2]`. Every draw takes one or
the other: keys `[..., 2]` and a shape S give `[..., *S]`, each row what JAX draws for that key alone. A key
is drawn from once; further ones are derived by meaning, `fold_in(key, "tilt")`.

Words come from Threefry-2x32 with 20 rounds, counted as in JAX's `jax_threefry_partitionable` mode: numpy's
uint32 on the CPU, int64 tensors elsewhere. From words to values, arithmetic is exact or rounded once, so that
draws are equal in eager, vmapped, compiled and GPU code. `normal` alone is not (use `gaussian_field`).

References:
    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011), section 3.3.
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
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from fpatch.tree import is_concrete

Key: TypeAlias = Tensor
"""A key, or an array of keys: int64 `[..., 2]`, each entry in [0, 2**32)."""

_MASK = 2**32 - 1
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # of the key schedule; with the rotations, the constants of Salmon et al.
_FEW_BLOCKS = 128  # up to which Python's integers are faster than numpy
_CACHED_WORDS = 2**16  # per pass over the rounds; the working set then stays in the processor's cache


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
    return torch.tensor([seed >> 32, seed & _MASK], dtype=torch.int64)


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
        if 0 <= data <= _MASK and _is_few(key):
            return _encrypt_few(key.numpy(), data)
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
    _require((data >= 0) & (data <= _MASK), "data must be in [0, 2**32)", data=data)
    key0, key1 = key.unbind(-1)
    return torch.stack(_threefry(key0, key1, torch.zeros_like(data), data), dim=-1)


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
    power = (power * power & _MASK) % span
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
    for _ in range(math.ceil(3 * math.log(max(1, num)) / math.log(_MASK))):
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
    return _gaussian(key, math.prod(_check_shape(shape))).reshape((*key.shape[:-1], *shape))


@torch.library.custom_op("fpatch::gaussian", mutates_args=())
def _gaussian(key: Tensor, num: int) -> Tensor:
    """Normals [..., num] for keys [..., 2]; an operator for the reasons that `_threefry` is one."""
    if key.device.type == "cpu":
        return _gaussian_numpy(key, num)
    word0, word1 = _blocks(key, (-(-num // 4),))
    index = torch.stack([word0 & 0xFFFF, word0 >> 16, word1 & 0xFFFF, word1 >> 16], dim=-1)
    index = index.flatten(-2)[..., :num]
    return _quantiles(key.device).index_select(0, index.flatten()).reshape(index.shape)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    return _QUANTILES.to(device)


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
        count = np.arange(start, min(start + _CACHED_WORDS, -(-num // 4)), dtype=np.uint32)
        word0, word1 = np.empty((2, len(count)), np.uint32)
        _encrypt(rows[row, 0], rows[row, 1], np.uint32(0), count, word0, word1)
        words = np.stack([word0, word1], axis=1).astype("<u4", copy=False)
        drawn = out[row, 4 * start : 4 * (start + len(count))]
        drawn[:] = table[words.view("<u2").reshape(-1)[: len(drawn)]]

    pieces = [(row, start) for row in range(len(rows)) for start in range(0, -(-num // 4), _CACHED_WORDS)]
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
    if _is_few(key, num):
        keys = key.numpy().reshape(-1, 1, 2).repeat(num, axis=1)
        word0, word1 = _encrypt_few(keys, np.arange(num)).unbind(-1)
        return word0.reshape(result_shape), word1.reshape(result_shape)
    count = torch.arange(num, device=key.device)
    key0, key1 = key[..., None, :].unbind(-1)
    word0, word1 = _threefry(key0, key1, torch.zeros_like(count[:1]), count)
    return word0.reshape(result_shape), word1.reshape(result_shape)


def _is_few(key: Tensor, num: int = 1) -> bool:
    # inside a transform even a tensor that it does not wrap gives no array
    inside = torch._C._are_functorch_transforms_active()
    return 0 < key.numel() * num <= 2 * _FEW_BLOCKS and is_concrete(key) and not inside


def _encrypt_few(keys: np.ndarray, low: int | np.ndarray) -> Tensor:
    """Encrypt the counters (0, low) with keys [..., n, 2]; low is a number or [n]. Returns [..., n, 2].

    All blocks lie side by side in one of Python's integers, 128 bits each as in memory, the first word in the
    lower half of a block: an operation on it takes 50 ns, where numpy takes 500 for any array.
    """
    num, size = keys.size // 2, 8 * keys.size
    ones = int.from_bytes(bytes([1, *[0] * 15]) * num, "little")
    mask = _MASK * ones
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
def _threefry(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the counters (high, low) with the keys: int64 tensors of 32-bit words that broadcast.

    An operator, since numpy cannot be traced, and a compiler that saw the rounds would inline them into each
    other (inductor: 40 s for one field).
    """
    encrypt = _threefry_numpy if key0.device.type == "cpu" else _threefry_torch
    return encrypt(key0, key1, high, low)


@_threefry.register_fake
def _(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(key0.shape, key1.shape, high.shape, low.shape)
    return key0.new_empty(shape), key0.new_empty(shape)


@_threefry.register_vmap
def _(
    info: object, in_dims: Sequence[int | None], *words: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    rank = max(word.ndim + (dim is None) for word, dim in zip(words, in_dims, strict=True))
    rows = [
        word if dim is None else word.movedim(dim, 0).unflatten(0, (-1, *(1,) * (rank - word.ndim)))
        for word, dim in zip(words, in_dims, strict=True)
    ]
    return _threefry(*rows), (0, 0)


def _threefry_torch(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    schedule = (key0, key1, key0 ^ key1 ^ _PARITY)
    word0, word1 = high + key0, (low + key1) & _MASK
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            word0 = word0 + word1  # may exceed 32 bits by carries; only word1 is rotated
            word1 = ((word1 << turn | word1 >> (32 - turn)) ^ word0) & _MASK
        word0 = word0 + schedule[(group + 1) % 3]
        word1 = (word1 + schedule[(group + 2) % 3] + (group + 1)) & _MASK
    return word0 & _MASK, word1


def _threefry_numpy(key0: Tensor, key1: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The same in wrapping uint32, in place, one piece of the broadcast arrays at a time."""
    with np.nditer(
        [key0.numpy(), key1.numpy(), high.numpy(), low.numpy(), None, None],
        ["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[np.uint32] * 6,
        order="C",
        casting="unsafe",
        buffersize=_CACHED_WORDS,
    ) as pieces:
        for k0, k1, c0, c1, word0, word1 in pieces:
            _encrypt(k0, k1, c0, c1, word0, word1)
        word0, word1 = pieces.operands[4:]
    return torch.from_numpy(word0.astype(np.int64)), torch.from_numpy(word1.astype(np.int64))


def _encrypt(key0: Any, key1: Any, high: Any, low: Any, word0: Any, word1: Any) -> None:
    """The rounds in wrapping uint32, in place in the last two arrays."""
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
