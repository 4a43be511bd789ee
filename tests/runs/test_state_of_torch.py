"""Whatever the calling program has set in torch, a command computes as in a new process."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from study_fixture import make_study, parameters

from fpatch.core.plain import plain_torch
from fpatch.doctor.examine import examine
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.replaying import replay_step
from fpatch.runs.training import resume, train
from fpatch.runs.verifying import verify_run
from fpatch.study.config import load_study


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


def use(path: Path) -> dict[str, Any]:
    """Train, measure, rerun and examine; return all numbers."""
    run = train(load_study(path, {"train.num_steps": 2, "evaluate.every": 2}))
    _, success = evaluate_run(run.folder)
    resume(run.folder)
    _, cells = evaluate_grid_run(run.folder, {"camera/exposure/stops": [-0.2, 0.2]})
    return {
        "patch": parameters(run),
        "rates": success,
        "grid": cells,
        "verified": verify_run(run.folder).differences,
        "step": replay_step(run.folder, 1),
        "learns": examine(load_study(path)).can_learn,
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Any]:
    return use(make_study(tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_torch_changes_no_bit(plain, tmp_path, state):
    path = make_study(tmp_path)
    with STATES[state]():
        found = use(path)
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert repr(value) == repr(plain[name]), name


def test_threads_leave_the_type_of_each_other_alone():
    """The default type is one for all threads: the first that is done does not put the program's back."""
    seen: list[torch.dtype] = []
    first_is_in, second_is_in, first_is_out = Event(), Event(), Event()

    def first() -> None:
        with plain_torch():
            first_is_in.set()
            second_is_in.wait(30)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(30)
        with plain_torch():
            second_is_in.set()
            first_is_out.wait(30)
            seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        threads = [Thread(target=work) for work in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() is torch.float64
    assert seen == [torch.float32]
