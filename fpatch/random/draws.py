"""Draws from explicit keys, equal bit for bit to `jax.random`.

A key is an int64 tensor `[2]` of two uint32 words; an array of keys is `[..., 2]`. Every draw accepts both:
keys `[..., 2]` and a shape S give `[..., *S]`, and each row equals JAX's draw for that key. A key serves one
draw. Further keys are derived by meaning, such as `fold_in(key, "tilt")`.

Words come from Threefry (`fpatch.random.threefry`), counted as in JAX's `jax_threefry_partitionable` mode.
The arithmetic from words to values is exact or rounded once. Draws are therefore equal in eager, vmapped,
compiled and GPU code. The exception is `normal`; use `gaussian_field` where bits matter.

References:
    JAX enhancement proposal 263, "JAX PRNG design"; jax/_src/random.
"""

import math
import operator
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from fpatch.core.tree import is_concrete
from fpatch.random.keys import Key, check_shape, require, split, words_of
from fpatch.random.threefry import MASK


def bits(key: Key, shape: Sequence[int] = ()) -> Int64[Tensor, "..."]:
    """Draw integers of 32 random bits, in [0, 2**32).

    Returns:
        Int64 `[..., *shape]`.

    Raises:
        ValueError: If the key or the shape is invalid.

    Example:
        >>> from fpatch import random
        >>> random.bits(random.key(0), (3,))
        tensor([4070199207, 4202968722, 1427181096])
    """
    word0, word1 = words_of(key, shape)
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
        ValueError: If `minval > maxval`, or a bound does not broadcast to the result.

    Example:
        >>> from fpatch import random
        >>> [round(x, 3) for x in random.uniform(random.key(0), (3,)).tolist()]
        [0.948, 0.979, 0.332]
        >>> random.uniform(random.split(random.key(0), 5), (2, 3), minval=-1.0).shape
        torch.Size([5, 2, 3])
    """
    words = bits(key, shape)
    if isinstance(minval, int | float) and isinstance(maxval, int | float) and is_concrete(words):
        return _between(words, minval, maxval)
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (minval, maxval))
    _check_broadcast(words, minval=low, maxval=high)
    require(low <= high, "uniform: minval must be at most maxval", minval=minval, maxval=maxval)
    # XLA contracts the product and the sum into one rounding. In float64 the product (23 + 24 bits) is exact,
    # which rounds the same way, whether or not a compiler contracts it.
    unit = (words >> 9).to(torch.float64) * 2**-23
    return torch.maximum((unit * (high - low).double() + low.double()).float(), low)


def _between(words: Tensor, minval: float, maxval: float) -> Tensor:
    """Compute `uniform` for bounds that are numbers: the same arithmetic in a third of the time."""
    if not minval <= maxval:
        raise ValueError(f"uniform: minval must be at most maxval, got minval={minval}, maxval={maxval}")
    low, high = np.float32(minval), np.float32(maxval)
    unit = (words >> 9).to(torch.float64) * 2**-23
    return (unit * float(high - low) + float(low)).float().clamp(min=float(low))


def randint(
    key: Key, shape: Sequence[int], minval: int | Tensor, maxval: int | Tensor
) -> Int64[Tensor, "..."]:
    """Draw integers uniform in [minval, maxval), equal to JAX's draws of int32.

    Args:
        key: `[..., 2]`.
        shape: S, for each key.
        minval: Inclusive; an int or an integer tensor that broadcasts to the result.
        maxval: Exclusive, likewise.

    Returns:
        Int64 `[..., *S]`.

    Raises:
        ValueError: If not `-2**31 <= minval < maxval < 2**31`, or a bound is no integer or does not
            broadcast.

    Example:
        >>> from fpatch import random
        >>> random.randint(random.key(0), (5,), 0, 10)
        tensor([9, 0, 2, 3, 1])
    """
    low, high = torch.as_tensor(minval), torch.as_tensor(maxval)
    if low.is_floating_point() or high.is_floating_point():
        raise ValueError(f"randint: bounds must be integers, got {low.dtype} and {high.dtype}; round them")
    low, high = low.long(), high.long()
    holds = (low >= -(2**31)) & (low < high) & (high < 2**31)
    require(holds, "randint: must be -2**31 <= minval < maxval < 2**31", minval=minval, maxval=maxval)
    upper, lower = bits(split(key), shape).unbind(key.ndim - 1)
    _check_broadcast(lower, minval=low, maxval=high)
    span = high - low
    # the 64-bit number (upper, lower) modulo the span; as in JAX, the square wraps to 32 bits
    power = 2**16 % span
    power = (power * power & MASK) % span
    return low + (upper % span * power + lower % span) % span


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Sequence[int] = ()) -> Bool[Tensor, "..."]:
    """Draw booleans that are True with probability `p`.

    Args:
        key: `[..., 2]`.
        p: In [0, 1]; a number or a tensor that broadcasts to the result.
        shape: S, for each key.

    Returns:
        Bool `[..., *S]`.

    Raises:
        ValueError: If `p` is outside [0, 1], or does not broadcast to the result.

    Example:
        >>> from fpatch import random
        >>> random.bernoulli(random.key(0), 0.5, (4,))
        tensor([False, False,  True,  True])
    """
    unit = uniform(key, shape)
    chance = torch.as_tensor(p, dtype=torch.float32)
    _check_broadcast(unit, p=chance)
    require((chance >= 0) & (chance <= 1), "bernoulli: p must be a probability in [0, 1]", p=p)
    return unit < chance


def permutation(key: Key, x: int | Tensor) -> Shaped[Tensor, "..."]:
    """Shuffle `range(x)`, or the entries of `x` along its first axis, once per key.

    Args:
        key: `[..., 2]`.
        x: A number of entries, or a tensor `[n, ...]`.

    Returns:
        `[..., x]` int64, or `[..., *x.shape]`.

    Raises:
        ValueError: If `x` is negative, or a tensor without axes.

    Example:
        >>> from fpatch import random
        >>> random.permutation(random.key(0), 6)
        tensor([0, 1, 5, 4, 3, 2])
    """
    num = _count("permutation: x", x)
    order = torch.arange(num, device=key.device).expand(*key.shape[:-1], num)
    # sort by random words, in rounds until equal words in every round are improbable
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

    With `p` and without replacement, the Gumbel top-k trick is computed in float64; JAX uses float32. The
    order may differ where it depends on the last bits of two logarithms.

    Args:
        key: `[..., 2]`.
        a: The number of entries, or a tensor of entries `[n, ...]`.
        shape: S, for each key.
        replace: Whether a key may draw an entry more than once.
        p: Weights of the entries, `[n]`, equal by default; they need not sum to 1.

    Returns:
        `[..., *S]` int64, or `[..., *S, *a.shape[1:]]`.

    Raises:
        ValueError: If there are no entries, too few without replacement, or `p` is invalid.

    Example:
        >>> from fpatch import random
        >>> random.choice(random.key(0), 5, (3,), replace=False)
        tensor([0, 1, 4])
    """
    num, num_draws = _count("choice: a", a), math.prod(check_shape(shape))
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
        require((weight >= 0) & enough, "choice: p must be non-negative, and positive often enough", p=p)
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
    """Draw standard normals, within 8 units in the last place of JAX's; last bits depend on the execution.

    Returns:
        Float32 `[..., *shape]`.

    Example:
        >>> from fpatch import random
        >>> [round(x, 3) for x in random.normal(random.key(0), (3,)).tolist()]
        [1.623, 2.025, -0.434]

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


def _cumsum(x: Float32[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """Compute the cumulative sum as XLA rounds it on the CPU: in blocks of 16, then over block sums."""
    rows = pad(x, (0, -len(x) % 16)).unflatten(0, (-1, 16))
    sums = torch.stack(tuple(accumulate(rows.unbind(1))), dim=1)
    if len(x) > 16:
        sums = sums + pad(_cumsum(sums[:, -1])[:-1], (1, 0))[:, None]
    return sums.flatten()[: len(x)]


def _check_broadcast(result: Tensor, **values: Tensor) -> None:
    for name, value in values.items():
        try:
            value.expand(result.shape)
        except RuntimeError:
            raise ValueError(
                f"{name} must broadcast to the result {list(result.shape)}, got {list(value.shape)}"
            ) from None


def _count(name: str, x: int | Tensor) -> int:
    """Return the number of entries: `x` itself, or the length of its first axis."""
    if isinstance(x, Tensor):
        if x.ndim == 0:
            raise ValueError(f"{name} must be an int or have an axis, got a tensor []; pass int(x)")
        return x.shape[0]
    return check_shape((operator.index(x),))[0]


_ERFINV_CENTER = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
