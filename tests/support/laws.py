"""What is true of every stage and of every pipeline, one function per law; `broken.py` has a breach of each.

What a law varies among the inputs of a case are its *leaves*: parameters, patches, image, logits.
"""

import copy
import dataclasses
import io
import json
import random as python_random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import optree
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cases import NUM_ROWS, SHARED, Case, noise
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from typecheck import unchecked

from fpatch import random
from fpatch.core.resource import resolve
from fpatch.core.tree import to_device
from fpatch.core.types import Range
from fpatch.evaluation.summaries import compute_states, init_states, update_states
from fpatch.graph.build import build
from fpatch.graph.node import node
from fpatch.graph.parameters import names_of_buffers, next_buffers
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control, from_columns, to_columns
from fpatch.graph.stage import Stage
from fpatch.optim.objective import Objective

KEY = random.key(5)
Tree = Any


class Law(NamedTuple):
    """A check that raises AssertionError, and which cases it speaks of."""

    check: Callable[[Case], None]
    applies: Callable[[Case], bool]


LAWS: dict[str, Law] = {}


def law(applies: Callable[[Case], bool] = lambda case: True) -> Callable[..., Any]:
    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        LAWS[check.__name__] = Law(check, applies)
        return check

    return register


# -- looking at a case


def leaves(case: Case) -> dict[str, Tensor]:
    """What the case computes from and a gradient may reach."""
    trained = case.subject.trainable() if isinstance(case.subject, Pipeline) else case.params
    found = {f"params/{name}": case.params[name] for name in trained}
    found |= {f"patch/{name}": value for name, value in case.batch.get("patch", {}).items()}
    found |= {name: case.batch[name] for name in ("image", "logits") if name in case.batch}
    if "detections" in case.batch and case.stages[0].definition.role != "metric":
        found["dense"] = case.batch["detections"]["dense"]["logits"]
    return found


def run(case: Case, values: Mapping[str, Tensor], sample: Tree, batch: Tree = None) -> dict[str, Tree]:
    """Apply with other leaves; returns what the case writes."""
    batch = dict(case.batch if batch is None else batch)
    for name in ("image", "logits"):
        batch |= {name: values[name]} if name in values else {}
    if "patch" in batch:
        batch["patch"] = {name: values[f"patch/{name}"] for name in batch["patch"]}
    if "dense" in values:
        dense = {**batch["detections"]["dense"], "logits": values["dense"]}
        batch["detections"] = {**batch["detections"], "dense": dense}
    params = {name: values.get(f"params/{name}", value) for name, value in case.params.items()}
    out = case.subject.apply(params, sample, batch)
    return {name: out[name] for name in written_names(case)}


def written_names(case: Case) -> list[str]:
    if isinstance(case.subject, Pipeline):
        names = {name for n in case.subject.values() for name in n.writes.values()} - set(SHARED)
        return sorted(name for name in names if not name.endswith("/buffers"))
    d = case.subject.definition
    return [name for name in d.writes if name not in d.optional or name in case.batch]


def take(tree: Tree, rows: list[int]) -> Tree:
    """These rows of a batch, a sample or an output."""
    if isinstance(tree, Mapping):
        return {k: take_shared(v, rows) if k in SHARED else take(v, rows) for k, v in tree.items()}
    return tree[rows]


def take_shared(patches: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The same patches [c, h, w], and these rows of those [b, c, h, w]."""
    return {name: patch[rows] if patch.ndim == 4 else patch for name, patch in patches.items()}


def stack_rows(trees: list[Tree]) -> Tree:
    """The rows of several batches or samples as one."""
    if isinstance(trees[0], Mapping):
        return {
            k: stack_shared([t[k] for t in trees]) if k in SHARED else stack_rows([t[k] for t in trees])
            for k in trees[0]
        }
    return torch.cat(trees)


def stack_shared(trees: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {n: torch.cat([t[n] for t in trees]) if p.ndim == 4 else p for n, p in trees[0].items()}


def others(case: Case) -> dict[str, Tree]:
    """Other rows: other photographs, darker ones, with larger quads and all placements there."""
    changed = take(case.batch, [1, 2, 0])
    for name in ("scene", "image"):
        if name in changed:
            changed[name] = 0.3 * (1 - changed[name])
    if "quads" in changed:
        changed["quads"] = 1.7 * changed["quads"].nan_to_num(nan=9.0)
    if "quad_valid" in changed:
        changed["quad_valid"] = torch.ones_like(changed["quad_valid"])
    return {**changed, "image_id": case.batch["image_id"] + 100}


def assert_equal(found: Tree, expected: Tree, tolerance: float = 0.0) -> None:
    """Bit for bit (or within a tolerance relative to the largest value), with NaN equal to NaN."""
    names = optree.tree_paths(expected)
    assert names == optree.tree_paths(found)
    for path, a, b in zip(names, optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        if tolerance and a.is_floating_point():
            limit = tolerance * max(1.0, float(b.nan_to_num().abs().max()))
            torch.testing.assert_close(a, b, rtol=0, atol=limit, equal_nan=True)
        else:
            same = (a == b) | ((a != a) & (b != b))
            assert bool(same.all()), f"{path}: {int((~same).sum())} of {a.numel()} values differ"


def clone(tree: Tree) -> Tree:
    return optree.tree_map(Tensor.clone, tree)


# -- randomness


@law()
def same_key_same_sample(case: Case) -> None:
    assert_equal(case.subject.sample(KEY, case.batch), case.subject.sample(KEY.clone(), case.batch))


@law(
    applies=lambda case: (
        not case.few_draws and any(set(s.definition.fields) - {"opacity", "on"} for s in case.stages)
    )
)
def draws_depend_on_key_photograph_and_use(case: Case) -> None:
    """Another key, another photograph and another use of one photograph give another sample."""
    found = to_columns(case.subject.sample(KEY, case.batch))
    drawn = np.stack([column.astype(np.float64) for column in found.values()])
    again = to_columns(case.subject.sample(random.key(6), case.batch))
    assert any(not np.array_equal(found[name], again[name]) for name in found)
    assert len(np.unique(drawn, axis=1).T) == NUM_ROWS


@law()
def sample_does_not_see_pixels(case: Case) -> None:
    """All randomness and no maths: what is drawn cannot depend on the patch, nor on the pictures."""
    names = ("patch", "masks", "scene", "image", "logits", "detections")
    blank = {k: optree.tree_map(torch.zeros_like, v) if k in names else v for k, v in case.batch.items()}
    assert_equal(case.subject.sample(KEY, blank), case.subject.sample(KEY, case.batch))


@law()
def permuted_batch_permutes_sample(case: Case) -> None:
    order = [2, 0, 1]
    permuted = case.subject.sample(KEY, take(case.batch, order))
    assert_equal(permuted, take(case.subject.sample(KEY, case.batch), order))


@law()
def draws_do_not_depend_on_the_batch(case: Case) -> None:
    """A row draws the same alone and among others."""
    sample = case.subject.sample(KEY, case.batch)
    assert_equal(case.subject.sample(KEY, take(case.batch, [1])), take(sample, [1]))
    more = case.subject.sample(KEY, stack_rows([others(case), case.batch]))
    assert_equal(take(more, [3, 4, 5]), sample)


# -- apply


@law()
def call_is_sample_then_apply(case: Case) -> None:
    out, sample = case.subject(case.params, KEY, case.batch)
    assert_equal(sample, case.subject.sample(KEY, case.batch))
    assert_equal(out, case.subject.apply(case.params, sample, case.batch))
    assert set(case.batch) <= set(out)


@law()
def inputs_are_left_alone(case: Case) -> None:
    sample = case.subject.sample(KEY, case.batch)
    before = clone((case.params, case.batch, sample))
    case.subject.apply(case.params, sample, case.batch)
    assert_equal((case.params, case.batch, sample), before)


@law()
def global_generators_are_left_alone(case: Case) -> None:
    """Nothing is drawn from torch, numpy or python, and nothing changes with them."""
    outs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        python_random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
        with unchecked():
            outs.append(case.subject(case.params, KEY, case.batch))
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        assert before[2] == python_random.getstate()
    assert_equal(outs[0], outs[1])


@law()
def the_state_of_torch_is_no_input(case: Case) -> None:
    """Default types and devices, autocast and the recording of gradients change no bit of a result.

    A victim computes in the autocast of the program.
    """
    expected = case.subject(case.params, KEY, case.batch)
    default = torch.get_default_dtype()
    states = [torch.device("meta"), torch.no_grad()]
    if all(s.definition.role != "victim" for s in case.stages):
        states.append(torch.autocast("cpu", torch.bfloat16))
    for state in states:
        with state:
            assert_equal(case.subject(case.params, KEY, case.batch), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert_equal(case.subject(case.params, KEY, case.batch), expected)
    finally:
        torch.set_default_dtype(default)


def separates_rows(case: Case) -> bool:
    """Whether no stage takes statistics over the rows of a batch, or compares them."""
    return not any(s.definition.traits.mixes_rows for s in case.stages)


@law(applies=separates_rows)
def rows_do_not_see_their_neighbors(case: Case) -> None:
    """With other neighbors, of other sizes, a row keeps its bits."""
    alone, among = with_neighbors(case)
    assert_equal(among, alone)


@law(applies=lambda case: not separates_rows(case) and not any(s.definition.weights for s in case.stages))
def mixed_rows_see_their_neighbors(case: Case) -> None:
    """A stage that needs no exception from the laws of rows declares none; a network may mix its buffers."""
    alone, among = with_neighbors(case)
    assert any(bool((among[name] != alone[name]).any()) for name in alone)


def with_neighbors(case: Case) -> tuple[Tree, Tree]:
    """Row 1 among its own neighbors, and among others."""
    sample, other = case.subject.sample(KEY, case.batch), others(case)
    mixed = stack_rows([take(other, [0]), take(case.batch, [1]), take(other, [2])])
    drawn = case.subject.sample(KEY, other)
    mixed_sample = stack_rows([take(drawn, [0]), take(sample, [1]), take(drawn, [2])])
    values = leaves(case)
    alone, among = run(case, values, sample), run(case, row_leaves(case, mixed), mixed_sample, mixed)
    return take(alone, [1]), take(among, [1])


def row_leaves(case: Case, batch: Tree) -> dict[str, Tensor]:
    """The leaves of another batch."""
    return leaves(Case(case.subject, case.params, batch))


@law(applies=separates_rows)
def position_keeps_the_bits(case: Case) -> None:
    """A row is the same anywhere in a batch, and in one of another size (behind a victim, to rounding)."""
    sample = case.subject.sample(KEY, case.batch)
    expected = run(case, leaves(case), sample)
    for rows in [2, 0, 1], [1], [0, 2, 0, 2, 1, 1, 0]:
        batch = take(case.batch, rows)
        found = run(case, row_leaves(case, batch), take(sample, rows), batch)
        tolerance = 0.0 if len(rows) == NUM_ROWS else case.tolerance
        assert_equal(found, take(expected, rows), tolerance)


@law(applies=lambda case: case.tolerance == 0 and separates_rows(case))
def products_are_those_of_one_row(case: Case) -> None:
    """Matrix products and convolutions see no more rows than one, whatever this processor's library does.

    Some libraries sum otherwise with the size of a batch, and only on some processors.
    """
    sample = case.subject.sample(KEY, case.batch)
    found = []
    for rows in ([1], [0, 1, 2]):
        batch = take(case.batch, rows)
        with Products() as products:
            run(case, row_leaves(case, batch), take(sample, rows), batch)
        found.append(products.shapes)
    assert found[1] == found[0]


class Products(TorchDispatchMode):
    """Shapes of what goes into a library of linear algebra or of convolutions."""

    NAMES = ("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.NAMES or name.startswith("linalg"):
            self.shapes.add((name, *(tuple(a.shape) for a in args if isinstance(a, Tensor))))
        return function(*args, **(kwargs or {}))


@law()
def pictures_stay_pictures(case: Case) -> None:
    """From 0..1 to 0..1, finite, in the same type; where placements are absent too."""
    sample = case.subject.sample(KEY, case.batch)
    out = case.subject.apply(case.params, sample, case.batch)
    for name in {"scene", "image"} & set(written_names(case)):
        assert out[name].shape == (NUM_ROWS, 3, *case.batch.get("scene", case.batch.get("image")).shape[-2:])
        assert out[name].dtype == torch.float32
        assert -1e-6 <= float(out[name].min()) <= float(out[name].max()) <= 1 + 1e-6
    for name, patch in out.get("patch", {}).items():
        assert 0 <= float(patch.min()) <= float(patch.max()) <= 1, name


@law(applies=lambda case: any(s.definition.role in ("loss", "metric") for s in case.stages))
def losses_and_metrics_write_one_number_per_row(case: Case) -> None:
    out, _ = case.subject(case.params, KEY, case.batch)
    nodes = [node(case.subject)] if isinstance(case.subject, Stage) else case.subject.values()
    for n in nodes:
        role = n.stage.definition.role
        for name in n.writes.values() if role in ("loss", "metric") else ():
            if role == "metric" and out[name].ndim == 2:
                assert out[name].shape == case.batch["box_valid"].shape  # one number per object
            else:
                assert out[name].shape == (NUM_ROWS,)
            assert role == "metric" or out[name].dtype == torch.float32


def reads_objects(case: Case) -> list[str]:
    """What tells the loss of this case which of its objects are there."""
    if not isinstance(case.subject, Stage) or case.subject.definition.role != "loss":
        return []
    reads = case.subject.definition.reads
    return [name for name in ("box_valid", "quad_valid") if name in reads]


@law(applies=lambda case: bool(reads_objects(case)) and bool(leaves(case)))
def rows_without_an_object_do_not_count(case: Case) -> None:
    """Nothing can be learned from a row without an object, so that its 0 must stay out of the mean."""
    batch = {**case.batch, **{n: case.batch[n].clone() for n in reads_objects(case)}}
    for name in reads_objects(case):
        batch[name][1] = False
    whole = Pipeline({"stage": node(case.subject)})
    for term in whole.terms:
        objective = Objective(whole, {term: 1.0})
        values = {name: value.clone().requires_grad_() for name, value in leaves(case).items()}
        rows = run(case, values, {}, batch)[term]
        found = torch.autograd.grad(rows[1], list(values.values()), allow_unused=True)
        if not any(bool(g.any()) for g in found if g is not None):
            counted = objective.counted({}, {}, batch)
            assert term in counted, f"{term}: declare `counted`"
            assert counted[term].tolist() == [True, False, True]


def classes_of(case: Case) -> dict[str, int]:
    """The settings of a stage that are a class, by its number."""
    if not isinstance(case.subject, Stage):
        return {}
    given = {n: getattr(case.subject.config, n) for n in case.subject.definition.classes}
    return {name: number for name, number in given.items() if number is not None}


@law(applies=lambda case: bool(classes_of(case)))
def a_class_may_have_a_name(case: Case) -> None:
    """The name of a class does what its number does, and nothing runs before it has become the number."""
    definition, names = case.subject.definition, tuple("abcdef")
    named = {setting: names[number] for setting, number in classes_of(case).items()}
    stage = definition.configured(replace(case.subject.config, **named))
    sample = case.subject.sample(KEY, case.batch)
    numbered = stage.with_classes(names)
    assert numbered.config == case.subject.config
    found = numbered.written(case.params, sample, case.batch)
    assert_equal(found, case.subject.written(case.params, sample, case.batch))
    assert "no classes are known here" in refusal(lambda: stage.written(case.params, sample, case.batch))
    assert "which is no class" in refusal(lambda: stage.with_classes(("a cat", "a dog")))


def refusal(call: Callable[[], Any]) -> str:
    """The sentence with which a call refuses; none if it does not."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def has_goal(case: Case) -> bool:
    return "goal" in classes_of(case) and case.stages[0].definition.role == "metric"


@law(applies=has_goal)
def rows_of_the_goal_are_no_question(case: Case) -> None:
    """Where the goal is the own class nothing has to change: such a row is neither found nor reached."""
    goal = classes_of(case)["goal"]
    own = {n: torch.full_like(case.batch[n], goal) for n in ("target", "labels") if n in case.batch}
    sample = case.subject.sample(KEY, case.batch)
    before, after = (case.subject.written(case.params, sample, case.batch | more) for more in ({}, own))
    counted = [n for n in after if n.removeprefix("object_") in ("found", "reached", "has_object", "valid")]
    assert len(counted) == 3
    for name in counted:
        assert not bool(after[name].any()), name
    assert any(bool(before[name].any()) for name in counted)


@law(applies=lambda case: any(s.definition.summary is not None for s in case.stages))
def summaries_are_pure_and_merge(case: Case) -> None:
    """States are tensors in dicts and lists, updates leave the old one alone, shards add up to the whole."""
    whole = case.subject if isinstance(case.subject, Pipeline) else Pipeline({"stage": node(case.subject)})
    sample = whole.sample(KEY, case.batch)
    _, seen, _ = whole.observe(case.params, sample, case.batch, want=())
    assert set(seen) == set(whole.summaries)
    for path, values in seen.items():
        stage = whole[path].stage
        summary = stage.definition.summary
        assert summary is not None
        init, update, merge, compute = summary
        first, second, third = (take(values, [i]) for i in range(NUM_ROWS))
        empty, read = init(stage.config), clone(values)
        a = update(stage.config, empty, first)
        assert_equal(empty, init(stage.config))
        before = clone(a)
        b = update(stage.config, update(stage.config, empty, second), third)
        rows = update(stage.config, update(stage.config, a, second), third)
        merged, at_once = merge(stage.config, a, b), update(stage.config, empty, values)
        found = [compute(stage.config, state) for state in (at_once, rows, merged)]
        assert_equal((a, values), (before, read))
        assert all(isinstance(leaf, Tensor) for leaf in optree.tree_leaves(at_once))
        assert all(isinstance(value, float) for value in found[0].values())
        for other in found[1:]:
            assert list(other) == list(found[0])
            np.testing.assert_allclose(list(other.values()), list(found[0].values()), atol=1e-6)


ANSWERS = ("detections", "logits")
"""What a victim answers, of what metrics read."""


@law(applies=lambda case: all(s.definition.role == "metric" for s in case.stages))
def answers_that_are_not_finite_never_count(case: Case) -> None:
    """The row whose answer is NaN or infinite is marked under every name, no other is; summaries are NaN."""
    inside = case.subject if isinstance(case.subject, Pipeline) else {"stage": node(case.subject)}
    answers = [name for name in ANSWERS if name in case.batch]
    assert answers

    def break_row(value: float) -> Callable[..., Any]:
        def breaking(params: Tree, key: Tensor, batch: Tree) -> tuple[Tree, Tree]:
            return {**batch, **{name: broken(batch[name], value) for name in answers}}, {}

        return breaking

    batch = case.batch | {"image": noise("image", NUM_ROWS, 3, 4, 4)}
    for value in (torch.nan, torch.inf, 0.0):
        victim = node(break_row(value), reads=["image", *answers], writes=answers)
        whole = Pipeline({"victim": victim, **inside})
        names = [name for n in inside.values() for name in n.writes.values()]
        out, seen, finite = whole.observe({}, whole.sample(KEY, batch), batch, want=names)
        assert set(out) == set(names)
        expected = [True, value == 0.0, True]
        for name in names:
            assert finite.names[name].tolist() == expected, name
        for path in whole.summaries:
            assert finite.summaries[path].tolist() == expected, path
        states = update_states(whole, init_states(whole), seen, finite.summaries)
        numbers = compute_states(whole, states).values()
        assert bool(numbers) == bool(whole.summaries)
        assert value == 0.0 or all(number != number for number in numbers)


def broken(answer: Tree, value: float) -> Tree:
    """The same answer, with this number everywhere in row 1."""
    if isinstance(answer, Mapping):
        return {name: broken(part, value) for name, part in answer.items()}
    if not answer.is_floating_point():
        return answer
    changed = answer.clone()
    changed[1] = value
    return changed


# -- networks that are trained


@law(applies=lambda case: not separates_rows(case))
def a_batch_repeats_its_bits(case: Case) -> None:
    """What mixes rows gives the same bits for the same batch, and the same rows in another order."""
    sample = case.subject.sample(KEY, case.batch)
    first, again = (case.subject.apply(case.params, sample, case.batch) for _ in range(2))
    assert_equal(again, first)
    order = [2, 0, 1]
    batch = take(case.batch, order)
    found = run(case, row_leaves(case, batch), take(sample, order), batch)
    assert_equal(found, take(run(case, leaves(case), sample), order), 2e-5)


@law(applies=lambda case: isinstance(case.subject, Pipeline) and bool(names_of_buffers(case.subject)))
def buffers_are_returned_not_written(case: Case) -> None:
    """The next buffers are new tensors of the same form, and those that were given stay."""
    sample, before = case.subject.sample(KEY, case.batch), clone(case.params)
    own = [resolve(s.config.model) for s in case.stages]
    held = [clone(dict(model.named_buffers())) for model in own]
    after = next_buffers(case.subject, case.subject.apply(case.params, sample, case.batch))
    assert_equal(case.params, before)
    for model, buffers in zip(own, held, strict=True):
        assert_equal(dict(model.named_buffers()), buffers)
    assert after
    for name, value in after.items():
        assert (value.shape, value.dtype) == (case.params[name].shape, case.params[name].dtype)
        assert value.data_ptr() != case.params[name].data_ptr(), name
    assert any(not torch.equal(value, case.params[name]) for name, value in after.items())


# -- populations, replay, gradients


def members(case: Case) -> list[dict[str, Tensor]]:
    """Three sets of leaves."""
    return [
        {
            name: (value + i * noise(name, *value.shape) / 3).remainder(1.0)
            for name, value in leaves(case).items()
        }
        for i in range(3)
    ]


@law(applies=lambda case: bool(leaves(case)) and all(s.definition.traits.vmap for s in case.stages))
def vmap_equals_a_loop(case: Case) -> None:
    """`vmap(apply)` over three sets of leaves, to rounding (a batch may be summed otherwise)."""
    population = members(case)
    sample = case.subject.sample(KEY, case.batch)
    looped = [run(case, values, sample) for values in population]
    stacked = optree.tree_map(lambda *v: torch.stack(v), *population)
    found = torch.func.vmap(lambda values: run(case, values, sample))(stacked)
    expected = optree.tree_map(lambda *v: torch.stack(v), *looped)
    assert_equal(found, expected, max(case.tolerance, 1e-6))


@law(applies=lambda case: separates_rows(case) and not any(s.definition.weights for s in case.stages))
def flat_population_equals_a_loop(case: Case) -> None:
    """A population is p * b rows, in which each row carries its member's patch."""
    population = members(case)
    sample = case.subject.sample(KEY, case.batch)
    shared = [
        name
        for name, value in leaves(case).items()
        if name.startswith("params/") or (name.startswith("patch/") and value.ndim == 3)
    ]
    flat = {
        name: torch.cat(
            [m[name].expand(NUM_ROWS, *m[name].shape) if name in shared else m[name] for m in population]
        )
        for name in leaves(case)
    }
    num = len(population)
    found = run(case, flat, stack_rows([sample] * num), stack_rows([case.batch] * num))
    for i, values in enumerate(population):
        expected = run(case, values, sample)
        for name in set(expected) - set(SHARED):
            rows = list(range(i * NUM_ROWS, (i + 1) * NUM_ROWS))
            assert_equal(take(found[name], rows), expected[name], case.tolerance)
        for patch, value in expected.get("patch", {}).items():
            own = found["patch"][patch][i * NUM_ROWS : (i + 1) * NUM_ROWS]
            assert_equal(own, value.expand_as(own), case.tolerance)


@law(applies=lambda case: any(s.definition.traits.of_patch for s in case.stages))
def what_is_of_the_patch_sees_no_photograph(case: Case) -> None:
    """A loss on the patch alone is the same in every row that shows it, whatever the photographs are."""
    names = [n for s in case.stages if s.definition.traits.of_patch for n in s.definition.writes]
    sample = case.subject.sample(KEY, case.batch)
    out = run(case, leaves(case), sample)
    again = run(case, leaves(case), sample, {**case.batch, "image_id": case.batch["image_id"] + 100})
    for name in names:
        assert_equal(again[name], out[name])
        assert_equal(out[name], out[name][:1].expand(NUM_ROWS))


@law()
def sample_survives_a_table(case: Case) -> None:
    """Through JSON and through Parquet and back, in the same bits; and it replays to the same bits."""
    sample = case.subject.sample(KEY, case.batch)
    columns = to_columns(sample)
    lists = json.loads(json.dumps({name: column.tolist() for name, column in columns.items()}))
    file = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), file)
    table = pq.read_table(file)
    expected = case.subject.apply(case.params, sample, case.batch)
    arrays = {name: table[name].to_numpy() for name in table.column_names}
    for held in from_columns(lists), from_columns(arrays):
        assert_equal(held, sample)
        assert_equal(case.subject.apply(case.params, held, case.batch), expected)


def weighted_sum(out: Tree, names: list[str]) -> Tensor:
    """Of everything (float) that is written under some names and depends on a leaf."""
    floats = [t for n in names if n in out for t in optree.tree_leaves(out[n]) if t.is_floating_point()]
    total = sum((t * noise("weights", *t.shape).to(t.device)).sum() for t in floats if t.requires_grad)
    assert isinstance(total, Tensor), "nothing that is written depends on a leaf"
    return total


def gradients(case: Case, values: Mapping[str, Tensor], sample: Tree, names: list[str]) -> dict[str, Tensor]:
    inputs = {name: value.clone().requires_grad_() for name, value in values.items()}
    total = weighted_sum(run(case, inputs, sample), names)
    found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    return {n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(values, found, strict=True)}


def is_differentiable(case: Case) -> bool:
    d = case.stages[-1].definition
    return bool(leaves(case)) and d.role != "metric" and d.traits.gradient and d.writes != ("masks",)


@law(applies=is_differentiable)
def gradient_reaches_every_leaf(case: Case) -> None:
    values = leaves(case)
    sample = case.subject.sample(KEY, case.batch)
    for name, gradient in gradients(case, values, sample, written_names(case)).items():
        assert bool(torch.isfinite(gradient).all()), name
        assert bool((gradient != 0).any()), f"no gradient in {name}"


@law(applies=lambda case: is_differentiable(case) and all(s.definition.traits.vmap for s in case.stages))
def vmapped_gradient_equals_a_loop(case: Case) -> None:
    """`vmap(grad(...))`, as a population is trained, to rounding."""
    population = members(case)
    sample = case.subject.sample(KEY, case.batch)
    names = written_names(case)
    looped = [gradients(case, values, sample, names) for values in population]
    stacked = optree.tree_map(lambda *v: torch.stack(v), *population)
    gradient = torch.func.grad(lambda values: weighted_sum(run(case, values, sample), names))
    found = torch.func.vmap(gradient)(stacked)
    expected = optree.tree_map(lambda *v: torch.stack(v), *looped)
    assert_equal(found, expected, max(case.tolerance, 1e-5))


@law(applies=lambda case: any("opacity" in s.definition.fields for s in case.stages))
def opacity_0_is_the_clean_scene(case: Case) -> None:
    """Control is an edit of the sample: bit for bit, whatever the patch holds, with a gradient of zero."""
    sample = case.subject.sample(KEY, case.batch)
    wrapped = control({"stage": sample})["stage"] if isinstance(case.subject, Stage) else control(sample)
    values = leaves(case)
    nan = {name: torch.full_like(value, torch.nan) for name, value in values.items()}
    image_names = [n for n in written_names(case) if n in ("image", "logits", "detections", "vanish")]
    clean, poisoned = run(case, values, wrapped), run(case, nan, wrapped)
    assert_equal({n: poisoned[n] for n in image_names}, {n: clean[n] for n in image_names})
    for values_of in (values, nan):
        for name, gradient in gradients(case, values_of, wrapped, image_names).items():
            assert not bool((gradient != 0).any()), f"a gradient reaches {name}"
    if isinstance(case.subject, Stage):
        assert_equal(poisoned["image"], case.batch["scene"])
        return
    below = case.batch["scene"]
    params = {name: nan[f"params/{name}"] for name in case.params}
    for path, written in case.subject.trace(params, wrapped, case.batch).items():
        if "opacity" in wrapped.get(path, {}):
            assert_equal(written["image"], below)
        below = written.get("image", written.get("scene", below))


# -- types


def takes_answers(case: Case) -> bool:
    """Return whether a model in the case answers, or the case is given answers."""
    return bool({"detections", "logits"} & set(case.batch) or "victim" in roles(case))


def roles(case: Case) -> list[str]:
    return [s.definition.role for s in case.stages]


@law(applies=takes_answers)
def dtypes_of_user_models_never_reach_geometry(case: Case) -> None:
    """What a model answers in another type counts as the same numbers in float32, bit for bit."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        found, expected = (typed_results(case, dtype, back) for back in (False, True))
        if dtype == torch.float64:  # decoded, or gathered, with more digits
            assert_equal(found if "victim" in roles(case) else in_single(found), expected, 1e-5)
        else:
            assert_equal(found, expected)


def hooked_part(model: Any) -> Any:
    """The part of a network whose answer the library reads."""
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor
    return model.head if hasattr(model, "transform") else model


def typed_results(case: Case, dtype: torch.dtype, back: bool) -> dict[str, Tree]:
    """All that is written and summarized where every answer is in a type, or has gone there and back."""
    batch = {
        n: retyped(v, dtype, back, n) if n in ("detections", "logits") else v for n, v in case.batch.items()
    }
    whole = case.subject if isinstance(case.subject, Pipeline) else Pipeline({"stage": node(case.subject)})
    victims = {p: n for p, n in whole.items() if n.stage.definition.role == "victim"}
    changed = {}
    for path, n in victims.items():
        model = copy.deepcopy(resolve(n.stage.config.model))
        hooked_part(model).register_forward_hook(lambda module, inputs, out: retyped(out, dtype, back))
        stage = Stage(n.stage.definition, dataclasses.replace(n.stage.config, model=model))
        changed[path] = dataclasses.replace(n, stage=stage)
    whole = whole | changed
    sample = whole.sample(KEY, batch)
    params = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in case.params.items()}
    if victims and "image" in batch:  # through the boundary of gradients
        batch["image"] = batch["image"].clone().requires_grad_()
    with unchecked():
        out, seen, _ = whole.observe(params, sample, batch, want=written_names(case))
    for path, values in seen.items():
        stage = whole[path].stage
        assert stage.definition.summary is not None
        init, update, _, compute = stage.definition.summary
        numbers = compute(stage.config, update(stage.config, init(stage.config), values))
        out |= {f"{path}/{n}": torch.tensor(value) for n, value in numbers.items()}
    return {n: optree.tree_map(Tensor.detach, out[n]) for n in out if n != "detections" or victims} | {
        f"final/{n}": v for n, v in out.get("detections", {}).get("final", {}).items() if not victims
    }


def retyped(tree: Tree, dtype: torch.dtype, back: bool, name: str = "") -> Tree:
    """The numbers rounded to a type, and maybe converted back; whole numbers are boxes only."""
    if isinstance(tree, Mapping):
        made = {n: retyped(part, dtype, back, n) for n, part in tree.items()}
        if type(tree) is dict:
            return made
        answer: Any = tree  # of transformers
        for n, part in made.items():
            answer[n] = part
        return answer
    if isinstance(tree, (list, tuple)):
        return type(tree)(retyped(part, dtype, back, name) for part in tree)
    if not isinstance(tree, Tensor) or not tree.is_floating_point():
        return tree
    if dtype == torch.int32:
        if name != "boxes":
            return tree
        rounded = tree.round()
        return rounded if back else rounded.to(dtype)
    # a probability that rounds to 1 has the log-odds of its type
    rounded = tree.to(dtype)
    rounded = rounded.masked_fill((rounded == 1) & (tree != 1), 0.5)
    return rounded.float() if back else rounded


def in_single(tree: Tree) -> Tree:
    return optree.tree_map(lambda x: x.float() if x.is_floating_point() else x, tree)


# -- settings and compilation


@law()
def config_rebuilds_it(case: Case) -> None:
    """Config -> JSON -> config: the same settings, and the same outputs."""
    whole = case.subject if isinstance(case.subject, Pipeline) else Pipeline({"stage": node(case.subject)})
    config = json.loads(json.dumps(whole.config))
    again = build(config)
    assert again.config == whole.config
    subject = again if isinstance(case.subject, Pipeline) else again["stage"].stage
    assert repr(subject) == repr(case.subject)
    assert_equal(subject(case.params, KEY, case.batch), case.subject(case.params, KEY, case.batch))


def has_a_range(case: Case) -> bool:
    return isinstance(case.subject, Stage) and any(isinstance(v, Range) for v in settings_of(case).values())


def settings_of(case: Case) -> dict[str, Any]:
    return {f.name: getattr(case.subject.config, f.name) for f in dataclasses.fields(case.subject.config)}


@law(applies=has_a_range)
def a_pair_is_a_range(case: Case) -> None:
    """Ranges as tuples or lists, and tuples as lists, make the same stage, with the same hash and config."""
    stage, settings = case.subject, settings_of(case)
    for form, kind in (tuple, Range), (list, tuple):
        pairs = {n: form(v) if isinstance(v, kind) else v for n, v in settings.items()}
        again = stage.definition(**pairs)
        assert again == stage
        assert {n: type(v) for n, v in settings_of(replace(case, subject=again)).items()} == {
            n: type(v) for n, v in settings.items()
        }
        configs = [Pipeline({"stage": node(made)}).config for made in (stage, again)]
        assert json.dumps(configs[0]) == json.dumps(configs[1])
        if is_hashable(stage):
            assert hash(again) == hash(stage)


def is_hashable(value: Any) -> bool:
    try:
        return isinstance(hash(value), int)
    except TypeError:  # it has a dict among its settings
        return False


def can_be_compiled(case: Case) -> bool:
    return all(s.definition.traits.compile for s in case.stages)


@law(applies=can_be_compiled)
def compiled_equals_eager(case: Case) -> None:
    """`torch.compile` traces `apply` whole and without side effects, and keeps its values to rounding."""
    compile_with("aot_eager", case)


@law(applies=can_be_compiled)
def traced_equals_eager(case: Case) -> None:
    """The first half of it, in half the time: one graph of `apply`, which runs as it was written."""
    compile_with("eager", case)


def compile_with(backend: str, case: Case) -> None:
    sample = case.subject.sample(KEY, case.batch)
    expected = case.subject.apply(case.params, sample, case.batch)
    torch._dynamo.reset()
    function: Callable[..., Tree] = torch.compile(case.subject.apply, backend=backend, fullgraph=True)
    with unchecked():
        found = function(case.params, sample, case.batch)
    assert_equal(found, expected, max(case.tolerance, 1e-6))


@law(applies=lambda case: isinstance(case.subject, Stage) and case.subject.definition.traits.pixelwise)
def channels_are_the_image(case: Case) -> None:
    """A pixelwise stage does the same to an image in its channels, bit for bit."""
    sample = case.subject.sample(KEY, case.batch)
    image = case.batch["image"].clone().requires_grad_()
    whole = case.subject.written(case.params, sample, {**case.batch, "image": image})["image"]
    channels = case.subject.written(case.params, sample, {"image": image.split(1, dim=1)})["image"]
    assert_equal(torch.cat(channels, dim=1), whole)
    weights = random.normal(KEY, whole.shape)
    expected, found = (
        torch.autograd.grad((weights * x).sum(), image)[0] for x in (whole, torch.cat(channels, dim=1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# -- another device


def can_be_faked(case: Case) -> bool:
    """Not what reads values on the host: kornia's augmentations, and what a case is marked for."""
    return case.fake and all(s.definition.name != "compose.augmentation" for s in case.stages)


@law(applies=can_be_faked)
def it_runs_on_another_device(case: Case) -> None:
    """With all it is given on a GPU, nothing is left on the CPU, and nothing waits for values.

    Fake tensors know their device and refuse to be mixed, but hold no values. A gradient on "cuda" needs a
    driver, and is therefore taken on "meta", which is a device like any other to them.
    """
    sample = case.subject.sample(KEY, case.batch)
    for stage in case.stages:
        stage.load()
    for device in ("cuda", "meta"):
        with fake_devices():
            moved = Case(case.subject.to(device), *to_device((case.params, case.batch), device))
            values = {n: value.requires_grad_(device == "meta") for n, value in leaves(moved).items()}
            try:
                out = run(moved, values, to_device(sample, device))
                found = optree.tree_leaves(out)
                if device == "meta" and is_differentiable(case):
                    total = weighted_sum(out, written_names(case))
                    found += torch.autograd.grad(total, list(values.values()), allow_unused=True)
            except RuntimeError as error:
                raise AssertionError(f"on {device}: {error}") from error
        places = {tensor.device.type for tensor in found if tensor is not None}
        assert places <= {device}, f"on {device} it writes to {places}"


@contextmanager
def fake_devices() -> Iterator[None]:
    """Tensors of any device, without values; without cuDNN, which asks for a driver."""
    # a module cannot exchange the fake parameters that it was copied with for themselves
    stay = mock.patch.object(torch.nn.Module, "to", lambda module, device: module)
    copied = mock.patch.object(Tensor, "__deepcopy__", lambda tensor, memo: tensor.detach().clone())
    with unchecked(), cudnn.flags(enabled=False), stay, copied, FakeTensorMode(allow_non_fake_inputs=True):
        yield


@law(applies=lambda case: can_be_faked(case) and not READS & {s.definition.name for s in case.stages})
def nothing_waits_for_a_gpu(case: Case) -> None:
    """No copy makes the host wait until a GPU has done all that it was given."""
    sample = case.subject.sample(KEY, case.batch)
    for stage in case.stages:
        stage.load()
    with fake_devices():
        moved = Case(case.subject.to("cuda"), *to_device((case.params, case.batch), "cuda"))
        sample = to_device(sample, "cuda")
        with NoWaiting():
            run(moved, leaves(moved), sample)


READS = {"create.soft_proof", "infer.torchvision_detector", "infer.transformers_detector"}
"""An engine on the host, and networks of libraries that make constants as they go."""


class NoWaiting(TorchFunctionMode):
    """Refuses copies between the host and a GPU that are not declared to be asynchronous."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if isinstance(out, Tensor) and name in ("tensor", "as_tensor", "new_tensor", "to", "cpu", "cuda"):
            given = args[0].device.type if isinstance(args[0], Tensor) and name != "new_tensor" else "cpu"
            declared = out.is_cuda and (kwargs or {}).get("non_blocking", False)
            assert given == out.device.type or declared, f"{name} waits for the GPU"
        return out
