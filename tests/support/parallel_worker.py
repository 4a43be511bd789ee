"""What every process of `test_parallel.py` does."""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from fpatch import compose, graph, node, pipeline
from fpatch.core.types import Params, Values
from fpatch.data import Loader
from fpatch.optim.loop import fit
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import StepInfo, TrainState, make_state, make_step
from fpatch.runtime.parallel import ALONE, Ranks, joined
from fpatch.study.config import load_study
from fpatch.study.setup import set_up
from fpatch.study.study import Study

SGD = Optimizer("sgd", 0.5, "constant")
CASES: dict[str, tuple[Optimizer, int, int, dict[str, Any]]] = {
    "even": (SGD, 50, 8, {}),
    "uneven": (SGD, 6, 7, {}),
    "fewest": (SGD, 3, 2, {}),
    "adam": (Optimizer("adam", 0.05), 6, 8, {}),
    "func": (SGD, 3, 8, {"transform": "func"}),
    "looking ahead": (Optimizer("nifgsm", 0.02), 6, 7, {}),
    "plateau": (Optimizer("adam", 0.05, "plateau", fall_every=1, patience=0), 6, 8, {}),
    "sharpness-aware": (SGD, 6, 7, {"rho": 0.5}),
    "accumulated": (SGD, 6, 8, {"micro_batch": 3}),
    "network": (Optimizer("sgd", 0.05, "one_cycle", peak_momentum=0.8, clip_norm=1.0), 6, 7, {}),
}
"""Optimizer, steps, rows of the whole batch and settings of the step, by name."""

TIMEOUT_S = 5.0


def run(study: Study, name: str, ranks: Ranks = ALONE, **more: Any) -> tuple[TrainState, list[StepInfo]]:
    """The last state of a case, and what there was to see of each step."""
    chosen, num_steps, rows, settings = CASES[name]
    parts = set_up(study)
    objective = network_objective() if name == "network" else parts.objective
    optimizer = make_optimizer(chosen, num_steps)
    state = make_state(objective, optimizer, parts.initial.key)
    step = make_step(objective, optimizer, **settings | more, ranks=ranks)
    loader = Loader(parts.dataset.split("train"), parts.initial.key, rows, ranks=ranks)
    states, infos = zip(*fit(state, step, loader, num_steps), strict=True)
    return states[-1], list(infos)


def wrong(values: Values, patch_params: Params) -> Values:
    return {"wrong": nn.functional.cross_entropy(values["logits"], values["image_id"] % 2, reduction="none")}


def network_objective() -> Objective:
    """A network without a patch, whose rows are independent: groups of one row are normalized."""
    torch.manual_seed(5)
    layers = nn.Conv2d(3, 4, 8, 8), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(4, 2))
    parts = {
        "light": node(compose.exposure((-0.5, 0.5)), reads={"image": "scene"}),
        "network": node(graph.module(network, trainable=True), reads=["image"], writes=["logits"]),
        "wrong": node(wrong, reads=["logits", "image_id"], writes=["wrong"]),
    }
    return Objective(pipeline(parts).at("train"), {"wrong": 1.0})


def tensors(state: TrainState, infos: list[StepInfo]) -> dict[str, torch.Tensor]:
    """All of both, by name."""
    seen = {f"params/{name}": value for name, value in state.params.items()}
    for i, info in enumerate(infos):
        seen |= {f"{i}/loss": info.loss, f"{i}/grad_norm": info.grad_norm}
        seen |= {f"{i}/terms/{name}": value for name, value in info.terms.items()}
        seen |= {f"{i}/batch/{name}": value for name, value in info.batch.items()}
        seen |= {f"{i}/counted/{name}": value for name, value in info.counted.items()}
        for path, fields in info.sample.items():
            seen |= {f"{i}/sample/{path}/{field}": value for field, value in fields.items()}
    return {name: value.clone().contiguous() for name, value in seen.items()}


def train_cases(study: Study, folder: Path) -> None:
    with joined() as ranks:
        for name in CASES:
            save_file(tensors(*run(study, name, ranks)), folder / f"{name}-{ranks.rank}.safetensors")


def refuse(study: Study, folder: Path) -> None:
    """Messages, a line each."""
    with joined() as ranks:
        assert ranks.tell("Grüße" if ranks.rank == 0 else "nothing") == "Grüße"
        ranks.check_same("the weather", b"rain")
        messages = []
        for tried in (
            lambda: ranks.check_same("the seed", str(ranks.rank).encode()),
            lambda: ranks.gather(torch.zeros(2, 3 + ranks.rank)),
        ):
            try:
                tried()
            except ValueError as error:
                messages.append(str(error))
        (folder / f"refused-{ranks.rank}.txt").write_text("\n".join(messages))


def beside(study: Study, folder: Path) -> None:
    """Where the default group carries no tensors on a CPU, as one of NCCL does not."""
    dist.init_process_group("cuda:gloo")
    with joined() as ranks:
        assert ranks[:2] == (dist.get_rank(), 2)
        assert ranks.tell("hello" if ranks.rank == 0 else "nothing") == "hello"
        save_file(tensors(*run(study, "uneven", ranks)), folder / f"uneven-{ranks.rank}.safetensors")
    assert dist.is_initialized()
    dist.destroy_process_group()


def lose_one(study: Study, folder: Path, how: str) -> None:
    """Process 1 ends, or hangs, after its second step."""
    chosen, _, rows, _ = CASES["even"]
    with joined(TIMEOUT_S) as ranks:
        parts, optimizer = set_up(study), make_optimizer(chosen, 10)
        state = make_state(parts.objective, optimizer, parts.initial.key)
        step = make_step(parts.objective, optimizer, ranks=ranks)
        loader = Loader(parts.dataset.split("train"), parts.initial.key, rows, ranks=ranks)
        try:
            for after, _ in fit(state, step, loader, 10):
                if ranks.rank == 1 and after.step == 2:
                    if how == "hangs":
                        time.sleep(600)
                    os._exit(9)
        except ConnectionError as error:
            (folder / f"{how}.txt").write_text(str(error))


def work(task: str, study_path: Path, folder: Path, given: dict[str, str]) -> None:
    """Do one of the above, in the environment that a launcher has given."""
    os.environ.update(given)
    torch.set_num_threads(1)
    study = load_study(study_path)
    if task in ("dies", "hangs"):
        lose_one(study, folder, task)
    else:
        {"cases": train_cases, "refuse": refuse, "beside": beside}[task](study, folder)
