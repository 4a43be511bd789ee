"""What is promised of a GPU, on one; everywhere else these tests are skipped. See `benchmarks/gpu.sh`."""

from pathlib import Path

import numpy as np
import optree
import pytest
import torch
from cases import CASES, demo, make_batch
from laws import KEY, assert_equal, run
from laws import leaves as leaves_of
from study_fixture import STEPS, copy_run, make_study, parameters
from typecheck import unchecked

from fpatch import random
from fpatch.core.tree import to_device
from fpatch.data import Loader
from fpatch.graph.stage import Stage
from fpatch.infer import lighter
from fpatch.optim.loop import fit
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step
from fpatch.optim.step import make_state, make_step
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.replaying import replay_run, replay_step
from fpatch.runs.standing import go_back
from fpatch.runs.training import resume, train
from fpatch.runtime.device import deterministic_algorithms
from fpatch.study.config import load_study
from fpatch.study.setup import set_up

pytestmark = pytest.mark.cuda

MOVABLE = [name for name, case in CASES.items() if not name.startswith("torchvision's Faster")]


def close(found, expected, tolerance):
    for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture
def objective():
    return Objective(demo().at("train"), {"vanish": 1.0, "total_variation": 0.1})


@pytest.fixture
def moved(objective):
    return Objective(objective.pipeline.to("cuda"), objective.weights)


@pytest.fixture
def batch():
    return make_batch()


@pytest.mark.parametrize("name", MOVABLE)
def test_a_stage_says_on_a_gpu_what_it_says_on_the_host(name):
    """To the rounding of another arithmetic; what chooses by a threshold is compared by `test_law` alone."""
    case = CASES[name]
    sample = case.subject.sample(KEY, case.batch)
    expected = run(case, leaves_of(case), sample)
    on_gpu = type(case)(case.subject.to("cuda"), *to_device((case.params, case.batch), "cuda"))
    found = run(on_gpu, leaves_of(on_gpu), to_device(sample, "cuda"))
    for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert a.is_cuda
        assert a.shape == b.shape
        near = torch.isclose(a.cpu().double(), b.double(), rtol=1e-3, atol=1e-3, equal_nan=True)
        assert float(near.double().mean()) > 0.999, name


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if isinstance(c.subject, Stage)])
def test_samples_are_the_same_bits(name):
    """Drawn from keys and a batch on the GPU too, which no caller does, but a field in `apply` is."""
    case = CASES[name]
    if case.subject.definition.name == "compose.augmentation":
        pytest.skip("kornia draws on the host")
    expected = case.subject.sample(KEY, case.batch)
    found = case.subject.sample(KEY.cuda(), to_device(case.batch, "cuda"))
    assert_equal(to_device(found, "cpu"), expected)


@pytest.mark.parametrize("shape", [(), (3, 97, 131)])
def test_draws_are_the_same_bits(shape):
    keys = random.split(random.key(3), 5)
    for draw in (random.bits, random.uniform, random.gaussian_field):
        assert torch.equal(draw(keys.cuda(), shape).cpu(), draw(keys, shape)), draw.__name__


def test_a_photograph_is_the_same_bits(tmp_path):
    dataset = load_study(make_study(tmp_path)).data.open()
    here, there = (dataset.batch(dataset.image_ids, device=device) for device in ("cpu", "cuda"))
    assert there["scene"].is_cuda
    assert not there["quads"].is_cuda
    assert_equal(to_device(there, "cpu"), here)


def test_a_loader_in_its_own_stream_gives_whole_batches(tmp_path):
    dataset = load_study(make_study(tmp_path)).data.open().split("train")
    batches = Loader(dataset, random.key(1), 4, device="cuda").batches()
    for step in range(6):
        torch.cuda._sleep(10_000_000)  # the reader is behind
        batch = next(batches)
        expected = Loader(dataset, random.key(1), 4).batch(step)
        assert_equal(to_device(batch, "cpu"), expected)
    batches.close()


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 2}, {"rho": 0.1}, {"transform": "func"}], ids=str)
def test_a_step_is_close_to_the_host_s(objective, moved, batch, settings):
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=1.0), 10)
    state, info = make_step(objective, optimizer, **settings)(
        make_state(objective, optimizer, random.key(0)), batch
    )
    there, seen = make_step(moved, optimizer, **settings)(
        make_state(moved, optimizer, random.key(0), "cuda"), batch
    )
    assert_equal(seen.sample, info.sample)
    close(there.params, state.params, 1e-3)
    close((seen.loss, seen.terms), (info.loss, info.terms), 1e-3)


def test_a_deterministic_step_is_the_same_bits_every_time(objective, moved, batch):
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=1.0), 10)
    step, state = make_step(moved, optimizer), make_state(moved, optimizer, random.key(0), "cuda")
    with deterministic_algorithms(True):
        params = [step(state, batch)[0].params for _ in range(5)]
    for other in params[1:]:
        assert_equal(other, params[0])
    expected = make_step(objective, optimizer)(make_state(objective, optimizer, random.key(0)), batch)[0]
    close(params[0], expected.params, 1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lighter_victim_trains(moved, batch, precision):
    light = Objective(lighter(moved.pipeline, precision, channels_last=True, recompute=True), moved.weights)
    optimizer = make_optimizer(Optimizer(), 10)
    step, state = make_step(light, optimizer), make_state(light, optimizer, random.key(0), "cuda")
    _, info = step(state, batch)
    assert bool(torch.isfinite(info.grad_norm))


def test_a_population_is_close_to_its_members(moved, batch):
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=1.0), 10)
    states = [make_state(moved, optimizer, random.key(i), "cuda") for i in range(3)]
    after, _ = make_population_step([moved] * 3, [optimizer] * 3)(states, [batch] * 3)
    step = make_step(moved, optimizer)
    for state, now in zip(states, after, strict=True):
        for a, b in zip(now.params.values(), step(state, batch)[0].params.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("mode", "transform"), [(True, "autograd"), ("reduce-overhead", "autograd"), (True, "func")]
)
def test_a_compiled_step_is_close_to_the_eager_one(moved, batch, mode, transform):
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=1.0), 10)
    state = make_state(moved, optimizer, random.key(0), "cuda")
    with unchecked():
        step = make_step(moved, optimizer, compile=mode, transform=transform)
        first = step(state, batch)[0]
        second, _ = step(first, batch)  # a graph that is played again must not overwrite what came before
        expected = make_step(moved, optimizer)
        assert_close_params(first, expected(state, batch)[0])
        assert_close_params(second, expected(first, batch)[0])


def assert_close_params(found, expected):
    for name, value in expected.params.items():
        torch.testing.assert_close(found.params[name], value, rtol=1e-3, atol=1e-3)


def test_a_step_waits_only_for_the_size_of_its_regions(moved, batch, monkeypatch):
    from fpatch.ops import region

    monkeypatch.setattr(region, "_region_size", lambda bounds, h, w: (h, w))
    optimizer = make_optimizer(Optimizer(), 10)
    step, state = make_step(moved, optimizer), make_state(moved, optimizer, random.key(0), "cuda")
    state, _ = step(state, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(state, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_needs_no_more_memory_the_second_time(moved, batch):
    optimizer = make_optimizer(Optimizer(), 100)
    step, state = make_step(moved, optimizer), make_state(moved, optimizer, random.key(0), "cuda")
    held = []
    for _ in range(6):
        state, info = step(state, batch)
        del info
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[2]


# -- studies


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = make_study(tmp_path_factory.mktemp("cuda"))
    text = path.read_text().replace("seed = 3", 'seed = 3\ndevice = "cuda"', 1)
    path.write_text(text.replace("[train]", "[train]\ndeterministic = true", 1))
    study = load_study(path)
    return study, evaluate_run(train(study).folder)[0]


def test_a_study_is_recorded_with_the_name_of_the_gpu(trained):
    _, run = trained
    name = torch.cuda.get_device_name()
    assert run.execution.device == run.load_execution("test").device == f"cuda ({name})"


def test_the_samples_of_a_study_are_those_of_the_host(trained, tmp_path):
    _, run = trained
    study = load_study(make_study(tmp_path))
    here = evaluate_run(train(study).folder)[0].load_table("test")
    there = run.load_table("test")
    for name in here:
        if name.startswith(("sample", "key/", "photograph", "image_id", "draw")):
            assert np.array_equal(here[name], there[name]), name


def test_replay_is_bit_for_bit(trained):
    _, run = trained
    found, differences = replay_run(run.folder)
    assert not differences
    assert not found.differences


def test_a_training_step_replays(trained):
    _, run = trained
    again = replay_step(run.folder, STEPS)
    assert again.identical
    assert not again.environment


def test_on_the_host_the_replay_says_what_differs(trained):
    _, run = trained
    config = run.folder / "config.json"
    text = config.read_text()
    try:
        config.write_text(text.replace('"device": "cuda"', '"device": "cpu"'))
        _, differences = replay_run(run.folder)
    finally:
        config.write_text(text)
    assert any(sentence.startswith("device: cuda (") for sentence in differences)


def test_a_stopped_run_goes_on_to_the_bit(trained, tmp_path: Path):
    """With `train.deterministic`; without it the backward of the warp adds in any order."""
    study, run = trained
    parts = set_up(study)
    stopped = copy_run(run, tmp_path)
    go_back(stopped, "step-00000002")
    state, _ = stopped.load_checkpoint("last", parts.initial)
    assert state.step == 2
    for here, like in zip(optree.tree_leaves(state[:2]), optree.tree_leaves(parts.initial[:2]), strict=True):
        assert here.device == like.device
    assert parameters(resume(stopped.folder)) == parameters(run)


def test_states_of_a_fit_stay_on_the_gpu(trained):
    study, _ = trained
    parts = set_up(study)
    step = make_step(parts.objective, parts.optimizer)
    loader = Loader(parts.dataset.split("train"), random.key(0), 4, device=study.place)
    states = [state for state, _ in fit(parts.initial, step, loader, 3)]
    assert all(value.is_cuda for value in states[-1].params.values())
    assert not states[-1].key.is_cuda
