"""CoKe against its algorithm in loops of numpy, and the laws of a state that is never written in place."""

import math
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from cases import noise
from typecheck import unchecked

from fpatch import data, losses, random

K, D, N = 4, 6, 23
X = 2 * noise("embeddings", N, D) - 1
IDS = torch.arange(N) + 5
KEY = random.key(3)


def make(**settings):
    return losses.online_k_means(K, D, **settings)


def batches(batch_size, steps):
    """Batches of the loader's order, which cross the ends of epochs."""
    return [data.indices(KEY, step, batch_size, N) for step in range(steps)]


def train(k_means, order, state=None, embeddings=X):
    """The terms of all batches, and the last state."""
    state = k_means.init(KEY, IDS) if state is None else state
    terms = []
    for rows in order:
        term, state = k_means.update(state, embeddings[rows], IDS[rows])
        terms.append(term)
    return terms, state


def by_loops(centers, order, temperature=0.1, min_frac=0.4, dual_rate=1.0):
    """The algorithm as the authors of Qian et al. (2022) published it in code, by loops in float64."""
    last, moving = centers.astype(np.float64), centers.astype(np.float64)
    rho, counts, labels, seen, terms = np.zeros(K), np.zeros(K), {}, 0, []
    for rows in order:
        x = [X[i].double().numpy() for i in rows]
        x = [v / math.sqrt(sum(v * v)) for v in x]
        new = []
        for v in x:
            scores = [sum(v * moving[k]) + rho[k] for k in range(K)]
            new.append(scores.index(max(scores)))
        for v, y, i in zip(x, new, rows.tolist(), strict=True):
            label = labels.get(i, y)
            logits = [sum(v * last[k]) / temperature for k in range(K)]
            terms.append(math.log(sum(math.exp(z) for z in logits)) - logits[label])
        for k in range(K):
            share = sum(y == k for y in new) / len(new)
            rho[k] -= dual_rate * (share - min_frac / K)
            if min_frac < 1:
                rho[k] = max(0.0, rho[k])
        for k in range(K):
            own = [v for v, y in zip(x, new, strict=True) if y == k]
            if own:
                mean = (counts[k] * moving[k] + sum(own)) / (counts[k] + len(own))
                counts[k] += len(own)
                moving[k] = mean / math.sqrt(sum(mean * mean))
        labels.update(zip(rows.tolist(), new, strict=True))
        seen += len(rows)
        if seen >= N:
            last, counts, seen = moving.copy(), np.zeros(K), seen - N
    return terms, {"centers": last, "moving": moving, "duals": rho, "counts": counts, "labels": labels}


@pytest.mark.parametrize(
    "settings", [{}, {"min_frac": 0.0}, {"min_frac": 1.0, "dual_rate": 0.5}, {"dual_rate": 20.0}]
)
@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_it_is_the_published_algorithm(batch_size, settings):
    order = batches(batch_size, 4 * N // batch_size)
    terms, state = train(make(**settings), order)
    start = make().init(KEY, IDS)["centers"]
    expected, last = by_loops(start.numpy(), order, **settings)
    np.testing.assert_allclose(torch.cat(terms), expected, rtol=1e-4, atol=1e-5)
    for name in ("centers", "moving", "duals", "counts"):
        np.testing.assert_allclose(state[name], last[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert {i: int(state["labels"][IDS[i]]) for i in last["labels"]} == last["labels"]
    assert bool((state["labels"][:5] == -1).all())  # ids that no image has
    assert len(set(last["labels"].values())) > 1


BLOB = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]) + 0.05 * (noise("blob", N, D) - 0.5)
"""Embeddings that are nearly the same."""


def shares(min_frac, rate, steps=400):
    """The share of all rows that each cluster got, and the last duals."""
    k_means, totals = make(min_frac=min_frac, dual_rate=rate), torch.zeros(K)
    state = k_means.init(KEY, IDS)
    for rows in batches(4, steps):
        _, state = k_means.update(state, BLOB[rows], IDS[rows])
        totals += torch.bincount(state["labels"][IDS[rows]], minlength=K) / (4 * steps)
    return totals, state["duals"]


def test_bounds_hold_over_all_rows():
    """Without bounds one cluster takes all; with them, none has less than its share, up to O(1 / steps)."""
    alone, _ = shares(0.0, 0.05)
    assert float(alone.max()) == pytest.approx(1.0)
    found, duals = shares(0.7, 0.05)
    # a dual is at least rate * (the bounds - the shares) of all steps, since max(0, .) only adds to it
    assert bool((found >= 0.7 / K - duals / (0.05 * 400) - 1e-4).all())
    assert bool((found >= 0.7 / K - 0.02).all())


def test_the_state_is_never_written_in_place():
    k_means = make()
    state = k_means.init(KEY, IDS)
    for rows in batches(5, 12):
        before = {name: value.clone() for name, value in state.items()}
        embeddings, ids = X[rows].clone(), IDS[rows].clone()
        term, after = k_means.update(state, embeddings, ids)
        assert set(after) == set(before)
        for name, value in before.items():
            assert torch.equal(state[name], value), name
            assert after[name].dtype == value.dtype, name
            assert after[name].shape == value.shape, name
        assert torch.equal(embeddings, X[rows])
        assert torch.equal(ids, IDS[rows])
        again, repeated = k_means.update(state, embeddings, ids)
        assert torch.equal(again, term)
        assert all(torch.equal(repeated[name], after[name]) for name in after)
        changed = [name for name in before if not torch.equal(after[name], before[name])]
        assert {"moving", "seen"} <= set(changed)
        state = after


def test_a_saved_state_continues_with_the_same_bits(tmp_path):
    k_means, order = make(), batches(5, 14)
    terms, whole = train(k_means, order)
    _, half = train(k_means, order[:6])
    safetensors.torch.save_file({n: v.contiguous() for n, v in half.items()}, tmp_path / "state.safetensors")
    again, resumed = train(k_means, order[6:], safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert torch.equal(torch.cat(again), torch.cat(terms[6:]))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_gradient_is_that_of_the_term_alone():
    k_means, rows = make(), torch.arange(7)
    _, state = train(k_means, batches(5, 6))

    def loss(x):
        term, after = k_means.update(state, x, IDS[rows])
        return term.mean(), after

    gradient, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(X[rows])
    x = X[rows].clone().requires_grad_()
    expected, moved = loss(x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])
    assert torch.equal(value, expected)
    assert not any(tensor.requires_grad for tensor in moved.values())
    assert all(torch.equal(after[name], moved[name]) for name in moved)
    assert bool((gradient.norm(dim=1) > 0).all())


def test_members_of_a_population_are_mapped():
    k_means, rows = make(), torch.arange(7)
    states = [train(k_means, batches(5, steps))[1] for steps in (2, 5, 9)]
    stacked = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    embeddings = torch.stack([X[rows], 0.5 - X[rows], X[rows].flip(1)])
    found, after = torch.func.vmap(k_means.update, in_dims=(0, 0, None))(stacked, embeddings, IDS[rows])
    for i, state in enumerate(states):
        term, expected = k_means.update(state, embeddings[i], IDS[rows])
        torch.testing.assert_close(found[i], term)
        for name, value in expected.items():
            torch.testing.assert_close(after[name][i], value)


def test_it_compiles_whole():
    k_means, rows = make(), torch.arange(7)
    _, state = train(k_means, batches(5, 6))
    with unchecked():
        compiled = torch.compile(k_means.update, backend="aot_eager", fullgraph=True)
        found, after = compiled(state, X[rows], IDS[rows])
    term, expected = k_means.update(state, X[rows], IDS[rows])
    torch.testing.assert_close(found, term)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value)


def test_rows_are_independent_given_the_state():
    k_means = make()
    _, state = train(k_means, batches(5, 6))
    rows = torch.arange(9)
    whole, _ = k_means.update(state, X[rows], IDS[rows])
    for part in rows.split(4):
        torch.testing.assert_close(k_means.update(state, X[part], IDS[part])[0], whole[part])


def test_an_image_shown_twice_keeps_the_label_of_its_last_row():
    k_means = make()
    _, state = train(k_means, batches(23, 3))
    rows, twice = torch.tensor([0, 1, 2, 3]), torch.tensor([9, 7, 9, 9])
    _, alone = k_means.update(state, X[rows], IDS[:4])
    _, after = k_means.update(state, X[rows], twice)
    assert len(set(alone["labels"][IDS[:4]].tolist())) > 1
    assert after["labels"][9] == alone["labels"][IDS[3]]
    assert after["labels"][7] == alone["labels"][IDS[1]]


def test_it_learns_clusters():
    """Free embeddings, descended on the term, end close to the center of their cluster; none is empty."""
    k_means = make()
    state, x, means = k_means.init(KEY, IDS), X.clone(), []
    for rows in batches(8, 120):
        part = x[rows].requires_grad_()
        term, state = k_means.update(state, part, IDS[rows])
        x = x.index_add(0, rows, torch.autograd.grad(term.sum(), part)[0], alpha=-0.3).detach()
        means.append(float(term.detach().mean()))
    assert sum(means[-10:]) < 0.05 * sum(means[:10])
    assert int(torch.bincount(state["labels"][IDS], minlength=K).min()) >= 2


def test_the_state_stays_in_float32():
    k_means = make()
    state = k_means.init(KEY, IDS)
    expected = k_means.update(state, X, IDS)[0]
    for x in (X.half(), X.double()):
        term, after = k_means.update(state, x, IDS)
        assert term.dtype == after["moving"].dtype == torch.float32
        torch.testing.assert_close(term, expected, rtol=1e-2, atol=1e-2)


def test_the_state_of_torch_is_no_input():
    k_means = make()
    expected = k_means.update(k_means.init(KEY, IDS), X, IDS)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            found = k_means.update(k_means.init(KEY, IDS), X, IDS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 1}, "online_k_means(num_clusters) must be at least 2, got 1"),
        ({"embedding_size": 0}, "online_k_means(embedding_size) must be at least 1, got 0"),
        ({"temperature": 0.0}, "online_k_means(temperature) must be at least 1e-06, got 0.0"),
        ({"min_frac": 1.5}, "online_k_means(min_frac) must be between 0 and 1, got 1.5"),
        ({"dual_rate": -1.0}, "online_k_means(dual_rate) must be at least 0, got -1.0"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        losses.online_k_means(**{"num_clusters": K, "embedding_size": D, **settings})


def test_wrong_values_are_refused():
    k_means = make()
    state = k_means.init(KEY, IDS)
    with unchecked():
        for x, ids, message in (
            (X[:, :5], IDS, r"embeddings must be \[23, 6\], got float32 \[23, 5\]"),
            (X[:4], IDS, r"embeddings must be \[23, 6\], got float32 \[4, 6\]"),
            (X, IDS.float(), r"update takes ids of images, int64 \[n\], got float32 \[23\]"),
            (
                X,
                IDS + 1,
                r"update got the image 28, but init was given ids up to 27; give",
            ),
            (X, IDS - 6, r"ids of images are at least 0, got -1"),
        ):
            with pytest.raises(ValueError, match=message):
                k_means.update(state, x, ids)
        with pytest.raises(ValueError, match=r"init takes ids of images, int64 \[n\], got int64 \[0\]"):
            k_means.init(KEY, IDS[:0])
