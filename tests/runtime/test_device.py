"""Where a step and a population run, on fake tensors; `test_cuda.py` runs them on a GPU."""

import os
import subprocess
import sys

import optree
import pytest
import torch
from cases import CASES, demo, make_batch
from laws import LAWS, fake_devices
from torch import Tensor, nn

from fpatch import create, infer, random
from fpatch.core.tree import constant, device_of, to_device
from fpatch.ops.sampling import is_deterministic_gpu
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step
from fpatch.optim.step import make_state, make_step
from fpatch.runtime.device import check_device, describe_device, deterministic_algorithms, find_device


def places(tree) -> set[str]:
    return {leaf.device.type for leaf in optree.tree_leaves(tree)}


@pytest.fixture
def objective():
    pipeline = demo().at("train")
    return Objective(pipeline, {"vanish": 1.0, "total_variation": 0.1})


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (Optimizer("adam"), {"micro_batch": 2}),
        (Optimizer("adam"), {"transform": "func"}),
        (Optimizer("nifgsm", schedule="constant"), {"rho": 0.1}),
        (Optimizer("rmsprop", schedule="plateau"), {}),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_a_step_runs_where_the_parameters_are(objective, optimizer, settings):
    batch = make_batch()
    for n in objective.pipeline.values():
        n.stage.load()
    with fake_devices():
        moved = Objective(objective.pipeline.to("meta"), objective.weights)
        made = make_optimizer(optimizer, 10)
        state = make_state(moved, made, random.key(0), "meta")
        after, info = make_step(moved, made, **settings)(state, batch)
    assert places((after.params, info.loss, info.terms, info.grad_norm)) == {"meta"}
    assert places((after.key, info.sample, info.batch)) == {"cpu"}
    for before, now in zip(
        optree.tree_leaves(state.opt_state), optree.tree_leaves(after.opt_state), strict=True
    ):
        assert before.device == now.device


def test_a_population_runs_where_the_parameters_are(objective):
    batch = make_batch()
    for n in objective.pipeline.values():
        n.stage.load()
    with fake_devices():
        moved = Objective(objective.pipeline.to("meta"), objective.weights)
        made = make_optimizer(Optimizer(), 10)
        states = [make_state(moved, made, random.key(i), "meta") for i in range(3)]
        step = make_population_step([moved] * 3, [made] * 3, members_at_once=2)
        after, infos = step(states, [batch] * 3)
    for state, info in zip(after, infos, strict=True):
        assert places((state.params, info.loss, info.terms)) == {"meta"}
        assert places((state.key, info.sample, info.batch)) == {"cpu"}


def test_state_on_another_device_is_drawn_on_the_host(objective):
    optimizer = make_optimizer(Optimizer(), 10)
    here = make_state(objective, optimizer, random.key(3))
    state = make_state(objective, optimizer, random.key(3), "meta")
    assert places(state.params) == {"meta"}
    assert places((state.key, here.params)) == {"cpu"}


class Net(nn.Module):
    """A parameter, a buffer and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.beside = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((-1, -2))


def test_a_network_is_copied_to_a_device_and_stays_where_it_is():
    model = Net().eval().requires_grad_(False)
    model.conv.weight.requires_grad_()
    stage = infer.classifier(model)
    moved = stage.to("meta").config.model
    assert places([*moved.parameters(), *moved.buffers()]) == {"meta"}
    assert places([*model.parameters(), *model.buffers()]) == {"cpu"}
    assert moved.conv.weight.requires_grad
    assert not moved.conv.bias.requires_grad
    assert "running_mean" in dict(moved.norm.named_buffers())
    assert stage.to("cpu").config.model is model
    stacked = create.stack(3)
    assert stacked.to("meta") is stacked


def test_trees_are_placed():
    tree = {"a": torch.zeros(2), "b": [torch.ones(3)]}
    assert to_device(tree, "cpu")["b"][0] is tree["b"][0]
    assert places(to_device(tree, "meta")) == {"meta"}
    assert device_of({}) == torch.device("cpu")
    assert device_of(to_device(tree, "meta")).type == "meta"
    for like in torch.zeros(1), torch.zeros(1, dtype=torch.int64):
        assert torch.equal(constant([1, 2], like), like.new_tensor([1, 2]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_a_gpu_that_is_not_there():
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    assert describe_device(torch.device("cpu")) == "cpu"
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=rf'device: \'{name}\' asks for a GPU.*set device = "auto"'):
            find_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda0"])
def test_what_no_device_is_called(name):
    with pytest.raises(ValueError, match=r'study\.device must be "auto", "cpu", "cuda"'):
        check_device("study.device", name)


def test_torch_is_asked_to_be_deterministic_and_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not is_deterministic_gpu(torch.zeros(1))
        assert is_deterministic_gpu(torch.zeros(1, device="meta"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_torch_refuses_because_cublas_was_called_before_says_what_to_do():
    """In the words of torch, which asks the environment once; other errors stay as they are."""
    with pytest.raises(RuntimeError) as refused, deterministic_algorithms(True):
        raise RuntimeError(
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
            "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic "
            "because it uses CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this "
            "case, you must set an environment variable before running your PyTorch application: "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
        )
    assert "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts" in refused.value.__notes__[0]
    with pytest.raises(RuntimeError) as other, deterministic_algorithms(True):
        raise RuntimeError("something else")
    assert not hasattr(other.value, "__notes__")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_command_line_sets_up_cublas_before_anything_is_loaded():
    """For the process that is its own; what the environment asks for stays."""
    code = (
        "import os, sys; from fpatch.cli.main import main; sys.argv = ['fpatch']; code = main()\n"
        "print(code, os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"
    )
    for given, expected in (({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")):
        clean = {n: v for n, v in os.environ.items() if n != "CUBLAS_WORKSPACE_CONFIG"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["2", expected, "False"]


def test_the_deterministic_implant_runs_on_another_device():
    with deterministic_algorithms(True):
        for rule in "it_runs_on_another_device", "nothing_waits_for_a_gpu":
            LAWS[rule].check(CASES["warp"])
