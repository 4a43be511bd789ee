"""Keys and their random words."""

import math
import operator
import zlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fpatch.core.tree import is_concrete
from fpatch.random.threefry import MASK, encrypt, encrypt_few, is_few

Key: TypeAlias = Tensor
"""A key, or an array of keys: int64 `[..., 2]`, each entry in [0, 2**32)."""


def key(seed: int) -> Int64[Tensor, "2"]:
    """Make the root key of a seed.

    Args:
        seed: In [0, 2**64). Its upper 32 bits are the first word, as in JAX with 64-bit types enabled. In its
            default 32-bit mode JAX drops them; there, the two agree for seeds below 2**32.

    Raises:
        ValueError: If the seed is no whole number, or outside that range.

    Example:
        >>> from fpatch import random
        >>> random.key(2**32 + 5)
        tensor([1, 5])
    """
    try:
        seed = operator.index(seed)
    except TypeError as error:
        raise ValueError(f"seed must be a whole number, got {seed!r}") from error
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}; take it modulo 2**64")
    return torch.tensor([seed >> 32, seed & MASK], dtype=torch.int64)


def split(key: Key, num: int = 2) -> Int64[Tensor, "*keys num 2"]:
    """Derive `num` keys from each key.

    Raises:
        ValueError: If the key or the number is invalid.

    Example:
        >>> from fpatch import random
        >>> random.split(random.key(0))
        tensor([[1797259609, 2579123966],
                [ 928981903, 3453687069]])
    """
    return torch.stack(words_of(key, (num,)), dim=-1)


def fold_in(key: Key, data: int | str | Tensor) -> Int64[Tensor, "*keys 2"]:
    """Derive a key from each key and `data`.

    Args:
        key: `[..., 2]`.
        data: An int in [0, 2**32), a name (its CRC-32 is folded in) or an integer tensor of such numbers. A
            tensor broadcasts against the leading axes of the keys: a key with data `[b]` gives row keys
            `[b, 2]`. Where values cannot be read (compiled, GPU), the low 32 bits are used.

    Raises:
        ValueError: If the key or the data have another type, do not broadcast, or a number is out of range.

    Example:
        >>> from fpatch import random
        >>> random.fold_in(random.key(0), 7)
        tensor([2716826189,  292468403])
        >>> random.fold_in(random.key(0), "tilt")
        tensor([3265977326,  789381495])
    """
    check_key(key)
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
    require((data >= 0) & (data <= MASK), "data must be in [0, 2**32)", data=data)
    key0, key1 = key.unbind(-1)
    return torch.stack(encrypt(key0, key1, torch.zeros_like(data), data), dim=-1)


def words_of(key: Key, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the two words of blocks 0, 1, ... of each key, `[..., *shape]` each, in row-major order."""
    check_key(key)
    num, result_shape = math.prod(check_shape(shape)), (*key.shape[:-1], *shape)
    if is_few(key, num):
        keys = key.numpy().reshape(-1, 1, 2).repeat(num, axis=1)
        word0, word1 = encrypt_few(keys, np.arange(num)).unbind(-1)
        return word0.reshape(result_shape), word1.reshape(result_shape)
    count = torch.arange(num, device=key.device)
    key0, key1 = key[..., None, :].unbind(-1)
    word0, word1 = encrypt(key0, key1, torch.zeros_like(count[:1]), count)
    return word0.reshape(result_shape), word1.reshape(result_shape)


def check_key(key: Key) -> None:
    """Check that a tensor is a key or an array of keys.

    Raises:
        ValueError: If it is not; the message names its type and shape.
    """
    if not isinstance(key, Tensor):
        got = repr(key) if isinstance(key, int | str) else f"a {type(key).__name__}"
        raise ValueError(f"key must be a key tensor, got {got:.80}; make one with fpatch.random.key(seed)")
    if key.dtype != torch.int64 or key.ndim == 0 or key.shape[-1] != 2:
        raise ValueError(
            f"key must be an int64 tensor [..., 2], got {key.dtype} {list(key.shape)}; make it with key(seed)"
        )


def check_shape(shape: Sequence[int]) -> Sequence[int]:
    """Return the shape, if it has no negative number.

    Raises:
        ValueError: If it has one.
    """
    if any(num < 0 for num in shape):
        raise ValueError(f"shape must have no negative number, got {tuple(shape)}")
    return shape


def require(holds: Tensor, rule: str, **values: object) -> None:
    """Check that a rule holds everywhere; values that cannot be read are not checked.

    Args:
        holds: Whether the rule holds, elementwise.
        rule: The rule, for the error.
        **values: The values by name, for the error.

    Raises:
        ValueError: If the rule is broken.
    """
    if is_concrete(holds) and not bool(holds.all()):
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"{rule}, got {given}")
