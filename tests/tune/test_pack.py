"""Packs of trials: as each trial by itself, to float tolerance, and to the bit however often it is killed."""

import gc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from study_fixture import STEPS, logged_steps, parameters
from sweeps import RATES, begin, make_plan, sweep_file, touchy_plan, work

from fpatch import random, tune
from fpatch.graph.stage import define, deterministic
from fpatch.runs.folder import Run
from fpatch.study.config import load_study, vary
from fpatch.tune.folder.journal import Journal, Trial
from fpatch.tune.next_trial import next_trial
from fpatch.tune.output.table import trial_columns
from fpatch.tune.plan import Plan, pack_size, plan_from_config
from fpatch.tune.trials.dispatcher import Dispatcher
from fpatch.tune.trials.pack import with_one_pipeline

MEMBERS = {
    "optimizer.learning_rate": (0.02, 0.2, "log"),
    "optimizer.name": ["adam", "sgd", "mifgsm"],
    "weights.total_variation": (0.01, 1.0),
}


def run_sweep(folder, pack: int, *, kills: tuple[int, ...] = (), study=None, **settings) -> Journal:
    """A sweep of three trials, killed after so many evaluations, each time that it is taken up."""
    plan = make_plan(folder, study={"checkpoint_every": 3, **(study or {})}, space=MEMBERS, **settings)
    journal = begin(plan)
    for kill in kills:
        work(journal, plan, steps=kill, pack=pack)
    work(journal, plan, pack=pack)
    return journal


SIZES: list[int] = []
"""Rows of every step that was taken."""

DETERMINISTIC: list[bool] = []
"""Whether each of them, or of the evaluations, was asked to be."""


@dataclass(frozen=True)
class Counted:
    """A loss of 0 that counts its rows."""


def apply_counted(config, params, sample, values):
    SIZES.append(len(values["image"]))
    DETERMINISTIC.append(torch.are_deterministic_algorithms_enabled())
    return {"counted": 0.0 * values["image"].mean((1, 2, 3))}


counted = define(
    "counted", Counted, deterministic, apply_counted, reads=("image",), writes=("counted",), role="loss"
)


@dataclass(frozen=True)
class Steep:
    """A loss of 0 with a gradient that a large weight takes beyond float32."""


def apply_steep(config, params, sample, values):
    image = values["image"]
    return {"steep": 1e30 * (image - image.detach()).sum((1, 2, 3))}


steep = define("steep", Steep, deterministic, apply_steep, reads=("image",), writes=("steep",), role="loss")


def tensors(journal: Journal, name: str) -> dict[str, np.ndarray]:
    found = parameters(Run(journal.run_folder(name)))
    return {n: np.frombuffer(bits, np.float32) for n, bits in found.items()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Journal:
    """Three trials trained together; not to be written to."""
    return run_sweep(tmp_path_factory.mktemp("packed"), 3)


def test_one_step_of_a_pack_is_that_of_separate_runs(tmp_path):
    once = {"num_steps": 1, "every": 1}
    together = run_sweep(tmp_path / "together", 3, study=once)
    alone = run_sweep(tmp_path / "alone", 1, study=once)
    for entry, own in zip(together.entries(), alone.entries(), strict=True):
        name = own.trial.name
        assert entry.trial == own.trial._replace(pack=["0000", "0001", "0002"])
        assert entry.outcome is not None
        assert entry.outcome.status == "finished"
        found, expected = tensors(together, name), tensors(alone, name)
        for n in expected:
            np.testing.assert_allclose(found[n], expected[n], rtol=0, atol=1e-5)
        draws, own_draws = (
            Run(j.run_folder(name)).load_table("validation-00000001") for j in (together, alone)
        )
        sampled = [n for n in own_draws if n.startswith("sample/")]
        assert sampled
        assert all(np.array_equal(draws[n], own_draws[n]) for n in sampled)
    trained = [parameters(Run(together.run_folder(n))) for n in together.names()]
    assert trained[0] != trained[1] != trained[2]


def test_every_trial_of_a_pack_is_an_ordinary_run(packed, tmp_path):
    alone = run_sweep(tmp_path, 1)
    for entry, own in zip(packed.entries(), alone.entries(), strict=True):
        folder = packed.run_folder(entry.trial.name)
        assert logged_steps(folder) == list(range(1, STEPS + 1))
        run = Run.open(folder)
        own_run = Run.open(alone.run_folder(own.trial.name))
        assert run.checkpoint_steps() == own_run.checkpoint_steps() == [0, 3, 6]
        config, expected = run.read_json("config.json"), own_run.read_json("config.json")
        for moved in ("data", "log", "pipeline"):
            del config[moved], expected[moved]
        assert config == expected
        assert [p.step for p in entry.points] == [3, 6]
        assert entry.value == pytest.approx(own.value, abs=0.2)
        assert (folder / "patch/side.png").exists()


def add_stage(plan: Plan, folder, name: str, phases: str) -> Plan:
    """The plan with a stage of this file in its pipeline."""
    path = folder / "study.toml"
    stage = f'[pipeline.{name}]\nstage = "test_pack:{name}"\nphases = {phases}\n[pipeline.vanish]'
    path.write_text(path.read_text().replace("[pipeline.vanish]", stage))
    return plan._replace(study=load_study(path))


def counted_plan(folder, phases: str) -> Plan:
    """A plan whose steps are counted."""
    plan = make_plan(folder, study={"checkpoint_every": 3}, space=MEMBERS)
    return add_stage(plan, folder, "counted", phases)


def fog(patch_params, key, batch):
    """A plain function, which a pack calls for one member after the other."""
    share = random.uniform(key, (), 0.0, 0.3)
    level = share[:, None, None, None]
    return {"image": batch["image"] * (1 - level) + level}, {"share": share}


def test_a_pack_with_a_plain_function_is_that_of_separate_runs(tmp_path):
    journals = {}
    for pack in 3, 1:
        folder = tmp_path / str(pack)
        plan = make_plan(folder, study={"num_steps": 1, "every": 1}, space=MEMBERS)
        path = folder / "study.toml"
        table = '[pipeline.fog]\nstage = "test_pack:fog"\nreads = ["image"]\nwrites = ["image"]\n'
        path.write_text(path.read_text().replace("[pipeline.victim]", f"{table}[pipeline.victim]"))
        plan = plan._replace(study=load_study(path))
        journals[pack] = begin(plan)
        work(journals[pack], plan, pack=pack)
    together, alone = journals[3], journals[1]
    for name in alone.names():
        found, expected = tensors(together, name), tensors(alone, name)
        for n in expected:
            np.testing.assert_allclose(found[n], expected[n], rtol=0, atol=1e-5)
        table, own = (Run(j.run_folder(name)).load_table("validation-00000001") for j in (together, alone))
        assert np.array_equal(table["sample/fog/share"], own["sample/fog/share"])


def test_a_step_is_of_all_members_even_where_one_has_ended(tmp_path):
    """On which the last bits of the others depend, where a kernel depends on the number of rows."""
    plan = counted_plan(tmp_path, '["train"]')
    SIZES.clear()
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    work(journal, plan, steps=5, pack=3)
    ended = [e.outcome is not None for e in journal.entries()]
    assert ended == [True, False, False]
    work(journal, plan, pack=3)
    alone = plan.study.train.batch_size
    assert SIZES.count(3 * alone) == 6 + 1  # the state of step 5 was saved as the pack was closed
    assert SIZES.count(alone) == 2  # one member shows its shapes before the first step of a process
    assert len(SIZES) == 6 + 1 + 2


@pytest.mark.parametrize("steps", [10**9, 4])
def test_a_deterministic_pack_is_so_to_its_end_and_leaves_the_process_as_it_was(tmp_path, steps):
    """Though its members leave in another order than they came; and where it is closed before."""
    plan = counted_plan(tmp_path, '["train", "validation"]')
    plan = plan._replace(study=vary(plan.study, {"train.deterministic": True}))
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    DETERMINISTIC.clear()
    work(journal, plan, steps=steps, pack=3)
    assert len(DETERMINISTIC) > 9
    assert all(DETERMINISTIC)
    gc.collect()
    assert not torch.are_deterministic_algorithms_enabled()


def test_members_share_the_networks_that_are_placed(tmp_path, monkeypatch):
    """Also on a device, here that of tensors without values, where each would make copies of its own."""
    plan = make_plan(tmp_path, space=MEMBERS)
    monkeypatch.setattr("fpatch.study.study.find_device", lambda name: torch.device("meta"))
    settings = [{"seed": i, "optimizer.learning_rate": 0.1 * (i + 1)} for i in range(3)]
    studies = with_one_pipeline([vary(plan.study, some) for some in settings])
    assert [s.seed for s in studies] == [0, 1, 2]
    models = [s.placed["victim"].stage.config.model for s in studies]
    assert all(model is models[0] for model in models)
    assert {p.device.type for p in models[0].parameters()} == {"meta"}
    assert studies[1].config["pipeline"] == plan.study.config["pipeline"]


@pytest.mark.parametrize(
    "kills",
    [(4,), (1, 2, 2), *(pytest.param(k, marks=pytest.mark.slow) for k in ((1,), (2,), (5,)))],
    ids=str,
)
def test_a_killed_pack_goes_on_to_the_same_bits(packed, tmp_path, kills):
    """Also where some have ended or are a checkpoint ahead."""
    journal = run_sweep(tmp_path, 3, kills=kills)
    assert [e.trial for e in journal.entries()] == [e.trial for e in packed.entries()]
    for name in packed.names():
        assert parameters(Run(journal.run_folder(name))) == parameters(Run(packed.run_folder(name)))
        assert logged_steps(journal.run_folder(name)) == list(range(1, STEPS + 1))
        found, expected = journal.entry(name).points, packed.entry(name).points
        assert [p[:2] for p in found] == [p[:2] for p in expected]


def test_a_pack_whose_noting_was_cut_off_is_completed(packed, tmp_path):
    plan = plan_from_config(packed.config)
    journal = Journal.create(tmp_path, plan.study.name, plan.config)
    first = next_trial(plan, [])
    assert first is not None
    journal.add(first._replace(pack=["0000", "0001", "0002"]))
    assert Dispatcher(journal, plan, lambda name: None).take() == "0000"
    assert [e.trial for e in journal.entries()] == [e.trial for e in packed.entries()]


def test_the_last_pack_may_be_smaller(tmp_path):
    plan = make_plan(tmp_path, num_trials=5)
    journal = begin(plan)
    told = []
    dispatcher = Dispatcher(journal, plan, told.append, 2)
    assert [dispatcher.take() for _ in range(4)] == ["0000", "0002", "0004", None]
    packs = [e.trial.pack for e in journal.entries()]
    assert packs == [["0000", "0001"]] * 2 + [["0002", "0003"]] * 2 + [None]
    assert told == journal.names()
    dispatcher.handle_end("0002")
    failed = [e.outcome is not None and e.outcome.status == "failed" for e in journal.entries()]
    assert failed == [False, False, True, True, False]


def test_a_trial_that_diverges_fails_alone(tmp_path):
    space = {"weights.steep": [0.0, 1e12, 1e-30], "weights.total_variation": 0.05}
    plan = make_plan(tmp_path, space=space, search="grid", num_trials=None)
    plan = add_stage(plan, tmp_path, "steep", '["train"]')
    journal = begin(plan)
    work(journal, plan, pack=3)
    entries = journal.entries()
    assert [e.outcome.status for e in entries if e.outcome] == ["finished", "failed", "finished"]
    assert "the gradient is not finite" in entries[1].outcome.error
    assert Run(journal.run_folder("0001")).has_checkpoint("last")


def test_what_fails_in_the_shared_step_fails_all(tmp_path):
    plan = touchy_plan(tmp_path)
    plan = plan._replace(study=vary(plan.study, {"pipeline.touchy.rows": 5}))
    journal = begin(plan)
    work(journal, plan, pack=3)
    for entry in journal.entries():
        assert entry.outcome is not None
        assert entry.outcome.error == "OutOfMemoryError: no memory for so many rows"
        assert "sweep.pack = 1 trains the trials one by one" in entry.outcome.traceback
        Run.open(journal.run_folder(entry.trial.name))
        with Run(journal.run_folder(entry.trial.name)).locked():
            pass


@pytest.mark.parametrize(
    ("settings", "places", "size"),
    [
        ({"num_trials": 24}, 2, 12),
        ({"num_trials": 64}, 2, 16),
        ({"num_trials": 24}, 64, 1),
        ({"num_trials": 5}, 2, 3),
        ({"num_trials": 24, "pack": 5}, 2, 5),
        ({"num_trials": 24, "pack": 1}, 2, 1),
        ({"num_trials": 24, "search": "noisy_gp"}, 2, 1),
        ({"num_trials": 24, "search": "noisy_gp", "pack": 4}, 2, 4),
        ({"num_trials": 24, "space": {"train.batch_size": (2, 4, "int")}}, 2, 1),
        ({"num_trials": 24, "halving": {"first": 3}}, 2, 1),
    ],
)
def test_the_size_of_packs(tmp_path, settings, places, size):
    assert pack_size(make_plan(tmp_path, **settings), places) == size


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"space": {"train.batch_size": (2, 4, "int")}}, "differ in train.batch_size"),
        ({"halving": {"first": 3}}, "stop each other"),
        ({"search": "population", "num_trials": 8, "population": {"size": 4, "every": 3}}, "replace"),
        ({"micro_batch_on_oom": True}, "sweep.micro_batch_on_oom needs"),
        ({"space": {**RATES, "train.micro_batch": 2}}, "train.micro_batch needs"),
        ({"study": {"profile_steps": 1}}, "log.profile_steps needs"),
    ],
)
def test_a_pack_that_cannot_be_is_refused_before_anything_starts(tmp_path, settings, why):
    with pytest.raises(ValueError, match=rf"sweep.pack = 2: .*{why}.*; leave sweep.pack out, or set it to 1"):
        begin(make_plan(tmp_path, pack=2, **settings))


@pytest.mark.parametrize("pack", ["0", '"all"'])
def test_a_bad_size_is_refused(tmp_path, pack):
    with pytest.raises(ValueError, match=r"sweep.pack"):
        tune.load_plan(sweep_file(tmp_path, f'num_trials = 2\nsearch = "random"\npack = {pack}'))


def test_the_table_says_who_was_trained_with_whom(packed):
    columns = trial_columns(plan_from_config(packed.config), packed.entries())
    assert columns["pack"] == ["0000"] * 3


def test_the_members_of_a_pack_are_read_back_from_the_journal(tmp_path):
    journal = Journal.create(str(tmp_path), "sweep", make_plan(tmp_path, num_trials=2).config)
    trial = Trial("0000", {"optimizer.learning_rate": 0.1}, seed=7, pack=["0000", "0001"])
    journal.add(trial)
    assert Journal.open(journal.folder).entry("0000").trial == trial
