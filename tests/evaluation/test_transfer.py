"""Every patch against every victim: own numbers as in an evaluation, others' patches on the same samples."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from study_fixture import make_study, run_fpatch

from fpatch import random
from fpatch.evaluation.conditions import make_conditions, make_patches
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.rates import success
from fpatch.evaluation.transfer import transfer
from fpatch.runs.evaluating import load_trained
from fpatch.runs.training import train
from fpatch.runs.transfer import transfer_runs
from fpatch.study.config import load_study
from fpatch.study.splits import evaluation_key


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Two runs with different patches: the second was trained for two steps only, from another seed."""
    folder = tmp_path_factory.mktemp("second")
    file = make_study(folder)
    other = train(load_study(file, {"train.num_steps": 2, "seed": 8, "name": "second"}))
    return trained.folder, other.folder


def measured(folder):
    with load_trained(folder) as found:
        return found


def test_each_patch_meets_each_victim(runs):
    names = [folder.name for folder in runs]
    found = transfer_runs(runs)
    first, second = (measured(folder) for folder in runs)
    assert list(found.rates) == names
    for name, here, there in ((names[0], first, second), (names[1], second, first)):
        key = evaluation_key(first.study, "test")
        control = random.fold_in(key, "control")
        conditions = make_conditions(here.pipeline, here.params, control)
        conditions["other"] = make_patches(there.pipeline, there.params)
        table = evaluate(
            here.pipeline,
            here.params,
            first.dataset,
            key,
            num_draws=first.study.evaluate.num_draws,
            block=first.study.evaluate.block,
            conditions=conditions,
        ).table
        expected = success(table)
        other = next(n for n in names if n != name)
        assert repr(found.rates[name][name]) == repr(expected.rates["patch"])
        assert repr(found.rates[name][other]) == repr(expected.rates["other"])
        assert repr(found.rates[name]["noise"]) == repr(expected.rates["noise"])
        assert repr(found.clean[name]) == repr(expected.clean)
        logged = found.evaluations[name].table
        np.testing.assert_array_equal(logged[f"digest/{other}"], table["digest/other"])
        assert (logged[f"digest/{other}"] != logged["digest/patch"]).all()


def test_the_diagonal_is_what_evaluate_says(runs):
    """With the key of the first run, whose own patch is then measured as by `fpatch evaluate`."""
    from fpatch.runs.opening import open_run

    run, _ = open_run(runs[0])
    found = transfer_runs(runs)
    table = run.load_table("test")
    own = found.evaluations[runs[0].name].table
    np.testing.assert_array_equal(own["digest/patch"], table["digest/patch"])
    np.testing.assert_array_equal(own["found/patch"], table["found/patch"])


def test_one_deterministic_study_makes_all_deterministic(runs, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in runs]
    config = json.loads((folders[1] / "config.json").read_text())
    config["train"]["deterministic"] = True
    (folders[1] / "config.json").write_text(json.dumps(config))
    asked = []
    transfer_runs(folders, on_progress=lambda *_: asked.append(torch.are_deterministic_algorithms_enabled()))
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_cannot_be_compared(runs):
    first, second = (measured(folder) for folder in runs)
    own, other = (make_patches(trained.pipeline, trained.params) for trained in (first, second))
    key = random.key(0)
    with pytest.raises(ValueError, match="give at least two patches, and one for every pipeline"):
        transfer({"a": first.pipeline}, {"a": own}, first.dataset, key)
    with pytest.raises(ValueError, match="give at least two patches"):
        transfer({"c": first.pipeline}, {"a": own, "b": other}, first.dataset, key)
    with pytest.raises(ValueError, match="transfer: a control cannot be called 'noise'"):
        transfer({"a": first.pipeline}, {"a": own, "noise": other}, first.dataset, key)
    one = {"patch": {"side": other["patch"]["side"]}}
    with pytest.raises(ValueError, match=r"'b' has the patches \['side'\], but 'a' has \['rear', 'side'\]"):
        transfer({"a": first.pipeline}, {"a": own, "b": one}, first.dataset, key)
    with pytest.raises(ValueError, match="names of the run folders must differ"):
        transfer_runs([runs[0], runs[0]])


def test_a_patch_may_come_without_its_victim(runs):
    both, one = transfer_runs(runs), transfer_runs(runs[:1], also=runs[1:])
    name = runs[0].name
    assert list(one.rates) == [name]
    assert repr(one.rates[name]) == repr(both.rates[name])


def test_other_photographs_are_refused(runs, tmp_path):
    file = make_study(tmp_path / "third")
    photograph = tmp_path / "third" / "photograph-11.png"
    with Image.open(photograph) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photograph)
    other = train(load_study(file, {"train.num_steps": 1, "name": "third"}))
    with pytest.raises(ValueError, match="has other images in the test split"):
        transfer_runs([runs[0], other.folder])


def test_the_command(runs, tmp_path):
    out = tmp_path / "table"
    done = run_fpatch("transfer", *runs, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder in runs:
        assert folder.name in done.stdout
    assert (tmp_path / "table.png").stat().st_size > 5000
    assert (tmp_path / "table.json").is_file()


def test_other_corners_are_refused(runs, tmp_path):
    """The same photographs, but one print elsewhere."""
    file = make_study(tmp_path / "moved")
    table = tmp_path / "moved" / "placements.csv"
    lines = table.read_text().splitlines()
    (line,) = (i for i, text in enumerate(lines) if text.startswith("photograph-11.png,side"))
    cells = lines[line].split(",")
    cells[3] = str(float(cells[3]) + 1)
    table.write_text("\n".join([*lines[:line], ",".join(cells), *lines[line + 1 :]]) + "\n")
    other = train(load_study(file, {"train.num_steps": 1, "name": "moved"}))
    with pytest.raises(ValueError, match="other sizes, placements, objects or classes"):
        transfer_runs([runs[0], other.folder])
