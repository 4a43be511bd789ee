"""What cases draw and write, and what a small study comes to, is what `golden.json` holds.

What depends on the processor, and where the file therefore holds a reason, is compared within this process:
cases with themselves after others have run, studies with ones that were stopped, cut into parts or replayed.
"""

import json
import re

import golden
import pytest
import torch
from cases import CASES
from study_fixture import parameters

from fpatch.runs.replaying import replay_run

EXPECTED = json.loads(golden.FILE.read_text())
OPTIONAL = {"yolos", "yolo11n"}
"""Cases of packages that need not be there."""


def is_digest(entry: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", entry) is not None


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """The small study trained in one go, and its tables; not to be written to."""
    run = golden.train_study(tmp_path_factory.mktemp("eager"))
    return run, golden.measure(run)


def test_the_file_speaks_of_every_case():
    assert OPTIONAL | set(CASES) == OPTIONAL | set(EXPECTED["written"])
    assert sum(map(is_digest, EXPECTED["written"].values())) > 20


def test_draws_are_those_of_the_last_release():
    found = golden.all_draws()
    assert {name: found.get(name) for name in EXPECTED["draws"]} == EXPECTED["draws"]


def test_what_is_written_is_that_of_the_last_release():
    exact = {name: entry for name, entry in EXPECTED["written"].items() if is_digest(entry)}
    assert {name: golden.digest_written(CASES[name]) for name in exact} == exact


def test_what_depends_on_the_processor_is_the_same_after_other_cases():
    others = [name for name in CASES if not is_digest(EXPECTED["written"][name])]
    found = {name: golden.digest_written(CASES[name]) for name in others}
    assert {name: golden.digest_written(CASES[name]) for name in reversed(others)} == found


def test_what_is_drawn_for_the_study_is_that_of_the_last_release(eager):
    _, tables = eager
    found = golden.digest_tables(tables)
    assert found == {name: entry for name, entry in EXPECTED["study"].items() if is_digest(entry)}


def test_the_resumed_study_has_the_same_patch(eager, tmp_path):
    run, _ = eager
    resumed = golden.train_study(tmp_path, stop_at=13)
    assert parameters(resumed) == parameters(run) != parameters(run, "step-00000010")
    assert parameters(resumed, "best") == parameters(run, "best")
    tables = [
        {n: v for n, v in r.load_table("validation-00000020").items() if n != "path"} for r in (run, resumed)
    ]
    assert golden.digest(tables[0]) == golden.digest(tables[1])


def test_the_micro_batched_study_has_the_same_patch_to_float_tolerance(eager, tmp_path):
    whole = eager[0].load_params("last")
    for name, patch in golden.train_study(tmp_path, micro_batch=3).load_params("last").items():
        torch.testing.assert_close(patch, whole[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("table", ["test", golden.GRID_TABLE])
def test_the_tables_of_the_study_replay_bit_for_bit(eager, table):
    replayed, changed = replay_run(eager[0].folder, table=table)
    assert changed == []
    assert not replayed.differences
