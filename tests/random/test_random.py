"""`fpatch.random` against published Threefry vectors, the real `jax.random`, and statistics."""

import functools
import zlib

import jaxtyping
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inductor import with_inductor
from torch._subclasses.fake_tensor import FakeTensorMode

from fpatch import random
from fpatch.core.tree import is_concrete
from fpatch.random import draws, fields, threefry
from fpatch.random import keys as key_module

jax = pytest.importorskip("jax")

KEYS = st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 2), min_size=3, max_size=3).map(torch.tensor)
SHAPES = st.sampled_from([(), (2, 3)])
WEIGHTS = [0.3, 1.7, 0.0, *[0.01 * i for i in range(30)], 5.0]
ROWS = [[0, 1], [2, 3], [4, 5]]
quick = settings(max_examples=12)

# draw(module, key, shape): the same call on fpatch.random with keys [3, 2], and on jax.random under jax.vmap.
DRAWS = {
    "bits": lambda r, k, s: r.bits(k, s),
    "split": lambda r, k, s: key_words(r.split(k, 3)),
    "fold_in": lambda r, k, s: key_words(r.fold_in(k, 4_000_000_000)),
    "uniform": lambda r, k, s: r.uniform(k, s),
    "uniform in a range": lambda r, k, s: r.uniform(k, s, minval=-123.4, maxval=0.017),
    "uniform of no width": lambda r, k, s: r.uniform(k, s, minval=0.3, maxval=0.3),
    "randint": lambda r, k, s: r.randint(k, s, -3, 17),
    "randint, 16 bits": lambda r, k, s: r.randint(k, s, 5, 65_526),
    "randint, 32 bits": lambda r, k, s: r.randint(k, s, -(2**31), 2**31 - 1),
    "bernoulli": lambda r, k, s: r.bernoulli(k, 0.3, s),
    "permutation": lambda r, k, s: r.permutation(k, 11),
    "permutation, two rounds": lambda r, k, s: r.permutation(k, 1700),
    "permutation of rows": lambda r, k, s: r.permutation(k, array(r, ROWS)),
    "choice": lambda r, k, s: r.choice(k, 9, s),
    "choice of rows": lambda r, k, s: r.choice(k, array(r, ROWS), s),
    "choice, once": lambda r, k, s: r.choice(k, 9, s, replace=False),
    "choice, weighted": lambda r, k, s: r.choice(k, len(WEIGHTS), s, p=array(r, WEIGHTS)),
    "choice, weighted, once": lambda r, k, s: r.choice(k, len(WEIGHTS), s, False, array(r, WEIGHTS)),
}
ALL_DRAWS = {**DRAWS, "gaussian_field": lambda r, k, s: r.gaussian_field(k, s)}


def array(module, values):
    return torch.tensor(values) if module is random else jax.numpy.array(values)


def key_words(keys):
    return keys if isinstance(keys, torch.Tensor) else jax.random.key_data(keys)


def jax_keys(keys):
    return jax.random.wrap_key_data(keys.numpy().astype(np.uint32))


@functools.cache
def jax_draws(shape):
    return jax.jit(jax.vmap(lambda key: {name: draw(jax.random, key, shape) for name, draw in DRAWS.items()}))


def assert_equal_jax(drawn, keys, shape):
    for name, expected in jax_draws(shape)(jax_keys(keys)).items():
        assert drawn[name].shape == expected.shape, name
        np.testing.assert_array_equal(drawn[name].numpy(), np.asarray(expected), err_msg=name)


def draw_all(keys, shape):
    return {name: draw(random, keys, shape) for name, draw in DRAWS.items()}


def on_host(draw, keys):
    return draw(keys)


def on_tensors(draw, keys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_module, "encrypt", threefry._encrypt_tensors)
        return draw(keys)


def under_vmap(draw, keys):
    return torch.func.vmap(draw)(keys)


in_every_form = pytest.mark.parametrize("form", [on_host, on_tensors, under_vmap])


@pytest.fixture
def unchecked():
    """Annotations are not checked: beartype samples, which cannot be compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@in_every_form
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_published_vectors(form, counter, key, words):
    """The lines `threefry 2 32 20` of `kat_vectors` in the Random123 distribution."""
    high, low = torch.tensor(counter)

    def encrypt(keys):
        first, second = keys.unbind(-1)
        return torch.stack(key_module.encrypt(first, second, high, low), dim=-1)

    encrypted = form(encrypt, torch.tensor([key]))
    assert encrypted.tolist() == [list(words)]


@in_every_form
@quick
@given(keys=KEYS, shape=SHAPES)
def test_draws_equal_jax(form, keys, shape):
    assert_equal_jax(form(functools.partial(draw_all, shape=shape), keys), keys, shape)


@pytest.mark.parametrize("transform", [lambda draw: draw, torch.func.vmap], ids=["rows", "vmap"])
@pytest.mark.usefixtures("unchecked")
def test_draws_equal_jax_compiled(transform):
    draw = functools.partial(draw_all, shape=(2, 3))
    compiled = torch.compile(transform(draw), backend="aot_eager", fullgraph=True)

    @quick
    @given(keys=KEYS)
    def check(keys):
        assert_equal_jax(compiled(keys), keys, (2, 3))

    check()


def test_operators_are_sound():
    words = torch.tensor([[1, 2], [3, 4], [5, 6]])
    torch.library.opcheck(
        threefry._encrypt, (words[:, :1], words[:, 1:], torch.zeros(1).long(), torch.arange(5))
    )
    torch.library.opcheck(fields._quantiles, (words.int(),))


def flush(value):
    """Zero for what is so near to it that a draw may be subnormal; XLA has no such numbers on a CPU."""
    return value if abs(value) > 1e-30 else 0.0


@quick
@example(keys=torch.zeros(3, 2, dtype=torch.int64), low=0.0, width=0.0, span=2**31, chance=0.5)
@given(
    keys=KEYS,
    low=st.floats(-1e4, 1e4, width=32).map(flush),
    width=st.floats(0, 1e4, width=32).map(flush),
    span=st.integers(1, 2**31),
    chance=st.floats(0, 1, width=32),
)
def test_bounds_as_tensors_equal_jax(keys, low, width, span, chance):
    low = torch.tensor([[low], [-0.1], [0.3]])
    high = low + torch.tensor([width, 1.0])
    first = torch.tensor([[-span], [0], [1]])
    last = (first + torch.tensor([span, 3])).clamp(max=2**31 - 1)
    chance = torch.tensor([[chance], [0.0], [1.0]])
    expected = jax_bounded_draws(
        jax_keys(keys), *(bound.numpy() for bound in (low, high, first.int(), last.int(), chance))
    )
    drawn = (
        random.uniform(keys, (2,), low, high),
        random.randint(keys, (2,), first, last),
        random.bernoulli(keys, chance, (2,)),
    )
    for ours, theirs in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), np.asarray(theirs))


@jax.jit
@jax.vmap
def jax_bounded_draws(key, low, high, first, last, chance):
    return (
        jax.random.uniform(key, (2,), minval=low, maxval=high),
        jax.random.randint(key, (2,), first, last),
        jax.random.bernoulli(key, chance, (2,)),
    )


@pytest.mark.parametrize("num", [1, 16, 17, 257, 1000])
def test_running_sums_of_weights_round_as_jax(num):
    weights = random.uniform(random.key(num), (num,))
    np.testing.assert_array_equal(
        draws._cumsum(weights).numpy(), np.asarray(jax.numpy.cumsum(weights.numpy()))
    )


@in_every_form
def test_normal_is_near_jax(form):
    keys = random.split(random.key(3), 4)
    drawn = form(lambda keys: random.normal(keys, (100_000,)), keys)
    expected = jax.vmap(lambda key: jax.random.normal(key, (100_000,)))(jax_keys(keys))
    np.testing.assert_array_max_ulp(drawn.numpy(), np.asarray(expected), maxulp=8)


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_key_equals_jax(seed):
    assert random.key(seed).tolist() == jax.random.key_data(jax.random.key(seed)).tolist()


@pytest.mark.parametrize("seed", [2**32, 2**32 + 5, 2**63 - 1])
def test_key_of_a_wide_seed_equals_jax_with_64_bit_types(seed):
    with jax.enable_x64(True):
        assert random.key(seed).tolist() == jax.random.key_data(jax.random.key(seed)).tolist()


def test_the_widest_seed():
    assert random.key(2**64 - 1).tolist() == [2**32 - 1, 2**32 - 1]


@jax.jit
@jax.vmap
def jax_fold_in(key, data):
    return jax.random.key_data(jax.random.fold_in(key, data))


@quick
@given(keys=KEYS, data=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3).map(torch.tensor))
def test_fold_in_of_rows_equals_one_by_one_and_jax(keys, data):
    rows = random.fold_in(keys, data)
    assert torch.equal(rows, torch.stack(list(map(random.fold_in, keys, data.tolist()))))
    assert torch.equal(rows, torch.func.vmap(random.fold_in)(keys, data))
    assert torch.equal(rows, on_tensors(lambda keys: random.fold_in(keys, data), keys))
    np.testing.assert_array_equal(rows.numpy(), jax_fold_in(jax_keys(keys), data.numpy().astype(np.uint32)))


def test_fold_in_broadcasts():
    root, data = random.key(1), torch.tensor([4, 0, 9], dtype=torch.int32)
    rows = random.fold_in(root, data)
    assert torch.equal(rows, torch.stack([random.fold_in(root, i) for i in (4, 0, 9)]))
    assert torch.equal(random.fold_in(rows, 5), torch.stack([random.fold_in(row, 5) for row in rows]))
    population = random.split(root, 2)[:, None]
    assert torch.equal(random.fold_in(population, data)[1, 2], random.fold_in(population[1, 0], 9))


def test_fold_in_broadcasts_under_vmap():
    """Rows of one rank meet data of a higher one, and the other way around."""
    keys, data = random.split(random.key(1), 4), torch.arange(3)
    grid = random.fold_in(keys[:, None], data)
    assert torch.equal(torch.func.vmap(lambda key: random.fold_in(key, data))(keys), grid)
    assert torch.equal(torch.func.vmap(lambda i: random.fold_in(keys, i), out_dims=1)(data), grid)
    each = torch.func.vmap(torch.func.vmap(random.fold_in, (None, 0)), (0, None))
    assert torch.equal(each(keys, data), grid)


def test_fold_in_of_a_name_is_its_crc32():
    root = random.key(1)
    assert torch.equal(random.fold_in(root, "größe"), random.fold_in(root, zlib.crc32("größe".encode())))


@quick
@given(order=st.permutations(range(6)), shape=SHAPES)
@pytest.mark.parametrize("name", ALL_DRAWS)
def test_permuted_keys_permute_the_draws(name, order, shape):
    keys = random.split(random.key(7), 6)
    drawn = ALL_DRAWS[name](random, keys[order], shape)
    assert torch.equal(drawn, ALL_DRAWS[name](random, keys, shape)[order])


@in_every_form
@pytest.mark.parametrize("shape", [(0,), (5, 0)])
@pytest.mark.parametrize("draw", [random.bits, random.uniform, random.normal, random.gaussian_field])
def test_empty_shapes(form, shape, draw):
    assert form(functools.partial(draw, shape=shape), random.split(random.key(0), 3)).shape == (3, *shape)


def test_large_fields_are_the_same_on_both_paths():
    """More words than one cached piece holds, in rows that do not divide it."""
    keys = random.split(random.key(2), 3)
    draw = functools.partial(random.bits, shape=(41, 997))
    assert torch.equal(on_host(draw, keys), on_tensors(draw, keys))
    assert torch.equal(on_host(draw, keys)[1], draw(keys[1]))


def test_uniform_is_differentiable_in_its_bounds():
    keys = random.split(random.key(2), 3)
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    slopes = torch.autograd.grad(random.uniform(keys, (), low, high).sum(), (low, high))
    unit = random.uniform(keys).sum()
    torch.testing.assert_close(torch.stack(slopes), torch.stack([3 - unit, unit]))


def test_quantiles_equal_scipy():
    table = fields._QUANTILES
    exact = scipy.stats.norm.ppf((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    np.testing.assert_array_max_ulp(table.numpy(), exact, maxulp=1)
    assert torch.equal(table, -table.flip(0))
    assert zlib.crc32(table.numpy().tobytes()) == 311878573, "another table draws other fields everywhere"


@in_every_form
@pytest.mark.parametrize("shape", [(3, 5, 7), (8,), ()])
def test_gaussian_field_is_the_quantiles_of_16_bit_words(form, shape):
    keys = random.split(random.key(4), 3)
    words = np.asarray(jax.vmap(lambda key: jax.random.key_data(jax.random.split(key, 40)))(jax_keys(keys)))
    index = words.astype("<u4").view("<u2").reshape(3, -1)[:, : int(np.prod(shape))]
    expected = scipy.stats.norm.ppf((index + 0.5) / 2**16).reshape(3, *shape)
    field = form(lambda keys: random.gaussian_field(keys, shape), keys)
    np.testing.assert_allclose(field.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=with_inductor)])
@pytest.mark.usefixtures("unchecked")
def test_fields_compiled(backend):
    def fields(keys):
        return random.gaussian_field(keys, (3, 31, 7)), random.uniform(keys, (3, 31, 7), -0.3, 1.7)

    keys = random.split(random.key(4), 3)
    compiled = torch.compile(fields, backend=backend, fullgraph=True)
    for one, other in zip(compiled(keys), fields(keys), strict=True):
        assert torch.equal(one, other)


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in ALL_DRAWS if "rows" not in name])
def test_draws_on_a_gpu(name):
    keys = random.split(random.key(7), 6)
    drawn = ALL_DRAWS[name](random, keys.cuda(), (2, 3)).cpu()
    assert torch.equal(drawn, ALL_DRAWS[name](random, keys, (2, 3)))


def test_statistics():
    keys = random.split(random.key(11), 8)
    uniform = random.uniform(keys[0], (50_000,)).numpy()
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 0.01
    for normal in (random.normal(keys[1], (50_000,)), random.gaussian_field(keys[2], (50_000,))):
        assert abs(normal.mean()) < 4 / 50_000**0.5
        assert abs(normal.var() - 1) < 4 * (2 / 50_000) ** 0.5
        assert scipy.stats.kstest(normal.numpy(), "norm").pvalue > 0.01
    lag = torch.corrcoef(random.gaussian_field(keys[2], (50_000,)).unfold(0, 5, 5).T)
    assert (lag - torch.eye(5)).abs().max() < 4 / 10_000**0.5
    counts = random.randint(keys[3], (50_000,), 0, 13).bincount().numpy()
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    assert abs(random.bernoulli(keys[4], 0.2, (50_000,)).double().mean() - 0.2) < 4 * 0.4 / 50_000**0.5
    ones = (random.bits(keys[5], (50_000, 1)) >> torch.arange(32) & 1).double().mean(0)
    assert (ones - 0.5).abs().max() < 4.5 * 0.5 / 50_000**0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: random.key(-1), r"seed must be in \[0, 2\*\*64\), got -1"),
        (lambda k: random.key(2**64), "seed must be in"),
        (lambda k: random.bits(k.int()), r"key must be an int64 tensor \[\.\.\., 2\], got torch.int32 \[2\]"),
        (lambda k: random.bits(torch.tensor(3)), "key must be an int64 tensor"),
        (lambda k: random.fold_in(torch.zeros(4, 3).long(), "x"), r"got torch.int64 \[4, 3\]"),
        (lambda k: random.fold_in(k, -1), r"data must be in \[0, 2\*\*32\), got data=-1"),
        (lambda k: random.fold_in(k, torch.tensor([0, 2**32])), "data must be in"),
        (
            lambda k: random.fold_in(k, torch.tensor([0.5])),
            "data must be a tensor of integers, got torch.float32",
        ),
        (
            lambda k: random.fold_in(random.split(k, 4), torch.arange(3)),
            r"broadcast against keys \[4\], got \[3\]",
        ),
        (lambda k: random.bits(k, (2, -1)), r"no negative number, got \(2, -1\)"),
        (lambda k: random.split(k, -1), "no negative number"),
        (
            lambda k: random.uniform(k, (), 1.5, 0.5),
            "minval must be at most maxval, got minval=1.5, maxval=0.5",
        ),
        (lambda k: random.uniform(k, (), 0.0, float("nan")), "minval must be at most maxval"),
        (
            lambda k: random.uniform(k, (2,), torch.zeros(3), 1.0),
            r"minval must broadcast to the result \[2\], got \[3\]",
        ),
        (lambda k: random.uniform(k, (), torch.zeros(1), 1.0), "minval must broadcast"),
        (lambda k: random.randint(k, (), 3, 3), "minval < maxval"),
        (lambda k: random.randint(k, (), 0, 2**31), r"maxval < 2\*\*31, got minval=0, maxval=2147483648"),
        (lambda k: random.randint(k, (), torch.zeros(()), 3), "bounds must be integers, got torch.float32"),
        (lambda k: random.randint(k, (2,), 0, torch.tensor([3, 0])), "minval < maxval"),
        (lambda k: random.bernoulli(k, 1.5), r"p must be a probability in \[0, 1\], got p=1.5"),
        (lambda k: random.bernoulli(k, torch.full((3,), 0.5)), "p must broadcast"),
        (lambda k: random.permutation(k, -1), "negative"),
        (lambda k: random.permutation(k, torch.tensor(3)), r"must be an int or have an axis"),
        (lambda k: random.choice(k, 0), "at least one entry"),
        (lambda k: random.choice(k, 3, (2, 2), replace=False), r"shape \(2, 2\) needs 4 of 3 entries"),
        (lambda k: random.choice(k, 3, p=[0.5, 0.5]), r"one weight per entry, \[3\], got \[2\]"),
        (lambda k: random.choice(k, 2, p=[1.5, -0.5]), "p must be non-negative"),
        (lambda k: random.choice(k, 3, (2,), replace=False, p=[1.0, 0.0, 0.0]), "positive often enough"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(random.key(0))


def test_is_concrete():
    plain = torch.zeros(2)
    seen = []

    def look(x):
        seen.append(is_concrete(x))
        return x.sum()

    torch.func.vmap(look)(plain)
    torch.func.vmap(torch.func.grad(look))(plain)
    torch.func.functionalize(look)(plain)
    with FakeTensorMode() as mode:
        look(mode.from_tensor(plain))
    look(torch.zeros(2, device="meta"))
    torch.compile(look, backend="eager", fullgraph=False)(plain)
    assert seen == [False] * len(seen)
    torch.func.grad(look)(plain)
    assert seen[-1]
    assert is_concrete(plain)
    assert is_concrete(torch.nn.Parameter(plain))


def test_fake_tensors_have_the_shape_and_the_device():
    keys = random.split(random.key(7), 3)
    for name in [name for name in ALL_DRAWS if "rows" not in name]:
        drawn = ALL_DRAWS[name](random, keys, (2, 3))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            faked = ALL_DRAWS[name](random, mode.from_tensor(keys).to("cuda"), (2, 3))
        assert (faked.shape, faked.dtype, faked.device.type) == (drawn.shape, drawn.dtype, "cuda"), name


@pytest.mark.parametrize("num", [1, 127, 128, 129])
def test_few_draws_are_the_same_draws(monkeypatch, num):
    """Python's integers, numpy's and tensors are three ways to the same words."""
    keys = random.split(random.key(7), num)

    def drawn():
        return [
            *(random.fold_in(keys, data) for data in (0, 2**32 - 1, "tilt", torch.arange(num))),
            random.split(keys[0], num),
            random.bits(keys, (1,)),
            random.uniform(keys, (), -3, 0.1),
            random.uniform(keys[:1], (num, 1), 1e-30, 7.0),
        ]

    few = drawn()
    monkeypatch.setattr(threefry, "_FEW_BLOCKS", 0)
    for found, expected in zip(few, drawn(), strict=True):
        assert torch.equal(found, expected)
