"""Random numbers as functions of explicit keys, equal bit for bit to `jax.random`."""

from fpatch.random.draws import bernoulli, bits, choice, normal, permutation, randint, uniform
from fpatch.random.fields import gaussian_field
from fpatch.random.keys import Key, fold_in, key, split

__all__ = [
    "Key",
    "bernoulli",
    "bits",
    "choice",
    "fold_in",
    "gaussian_field",
    "key",
    "normal",
    "permutation",
    "randint",
    "split",
    "uniform",
]
