"""Images that are not held out, and thresholds that do not count, are said by doctor and train."""

import shutil

import pytest
import torch
from torch import nn

from fpatch import evaluate_run, infer, metrics, pipeline, train
from fpatch.demo.tiny import tiny_study
from fpatch.doctor.examine import examine
from fpatch.runs.transfer import transfer_runs
from fpatch.study.config import load_study
from fpatch.study.goals import judge_best
from fpatch.study.leaks import find_leaks
from fpatch.study.thresholds import find_cut

LEAKS = {
    "test is train": ({"data.test": "train"}, "data.test", "measured on images that it was trained on"),
    "validation is train": (
        {"data.validation": "train"},
        "data.validation",
        "chosen by images that the patch",
    ),
    "validation is test": (
        {"data.validation": "test"},
        "data.test",
        "chosen by images that it is measured on",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_one_split_for_two_phases(tmp_path, name):
    settings, where, what = LEAKS[name]
    study = tiny_study(tmp_path, settings)
    ((found, sentence),) = find_leaks(study, study.data.open())
    assert found == where
    assert what in sentence


def test_a_copy_of_an_image_in_another_split(tmp_path, caplog):
    """A link to it is the same file, which is an error; a copy of other bytes is another image."""
    tiny_study(tmp_path)
    for copy in ("4.png", "5.png"):
        shutil.copy(tmp_path / "0.png", tmp_path / copy)
    shutil.copy(tmp_path / "6.png", tmp_path / "7.png")  # within a split
    study = load_study(tmp_path / "study.toml", {"log.runs": str(tmp_path)})
    ((where, sentence),) = find_leaks(study, study.data.open())
    assert where == "data.test"
    assert f"{tmp_path}/4.png has the content of {tmp_path}/0.png, an image of data.train" in sentence
    assert "(and 1 more): the patch is measured on" in sentence
    assert sentence in [f.what for f in examine(study).findings if f.level == "warning"]
    train(study)
    assert sentence in caplog.text


@pytest.mark.parametrize(("split", "meant"), [("Test", "test"), ("tets", "test"), ("Train", "train")])
def test_a_misspelt_split(tmp_path, split, meant):
    study = tiny_study(tmp_path)
    assert not list(find_leaks(study, study.data.open()))
    image = "4.png" if meant == "test" else "0.png"
    for line in (f"{image},tag,{meant}", f"{image},lamp,{meant}"):
        for name in ("placements.csv", "objects.csv"):
            path = tmp_path / name
            path.write_text(path.read_text().replace(line, line.replace(meant, split)))
    ((_, sentence),) = find_leaks(study, study.data.open())
    assert (
        f"1 of 8 images are in the split {split!r}, which no phase reads; did you mean {meant!r}?" in sentence
    )


@pytest.mark.parametrize("split", ["night", "test2", "test-far"])
def test_a_split_of_another_name_is_no_mistake(tmp_path, split):
    study = tiny_study(tmp_path)
    for name, what in (("placements.csv", "tag"), ("objects.csv", "lamp")):
        path = tmp_path / name
        path.write_text(path.read_text().replace(f"7.png,{what},test", f"7.png,{what},{split}"))
    assert not list(find_leaks(study, study.data.open()))


BEST = {
    "confidence/patch": "surer of the object",
    "found/patch": "surer of the object",
    "confidence/delta": "surer of the object",
    "success/clean": "does not depend on the patch",
    "success/missed/none": "does not depend on the patch",
    "confidence/none": "does not depend on the patch",
    "success/missed/noise": "does not depend on the patch",
    "success/patch": None,
    "success/drop/patch": None,
    "success/missed/patch": None,
    "success/over/noise": None,
}


@pytest.mark.parametrize("best", BEST)
def test_a_scalar_by_which_no_best_checkpoint_can_be_found(tmp_path, best):
    found = list(judge_best(tiny_study(tmp_path, {"evaluate.best": best})))
    assert [where for where, _ in found] == ([] if BEST[best] is None else ["evaluate.best"])
    assert all(BEST[best] in sentence for _, sentence in found)
    assert not list(judge_best(tiny_study(tmp_path, {"evaluate.best": best, "data.validation": False})))


class Bright(nn.Module):
    """A detector of one box, whose logit is the brightness."""

    def forward(self, images):
        boxes = torch.tensor([[2.0, 1.0, 18.0, 13.0]]).expand(len(images), 1, 4)
        return {"boxes": boxes, "logits": 10 * images.mean((1, 2, 3))[:, None, None].expand(-1, 1, 2)}


def test_a_metric_below_the_threshold_of_suppression():
    def parts(least, counted, **more):
        return pipeline(
            {
                "victims": infer.ensemble(
                    {"a": infer.detector(Bright().eval())},
                    {
                        "suppress": infer.suppress(score=least),
                        "hit": metrics.detection_hit(score=counted),
                        **more,
                    },
                )
            }
        )

    assert not list(find_cut(parts(0.05, 0.5)))
    assert not list(find_cut(parts(0.3, 0.3)))
    ((path, sentence),) = find_cut(parts(0.3, 0.1, objects=metrics.object_hit(score=0.4)))
    assert path == "victims/a/hit"
    assert "from a score of 0.1, but 'victims/a/suppress' keeps none below 0.3" in sentence


def test_runs_that_differ_in_more_than_their_victims_are_said(tmp_path):
    def run(name, **settings):
        return train(tiny_study(tmp_path, {"data.validation": False, "name": name} | settings)).folder

    first = run("first")
    others = {
        "same": {"train.num_steps": 2, "seed": 3, "pipeline.misclassify.margin": 1.0},
        "dark": {"pipeline.exposure.stops": [-0.6, -0.5]},
        "draws": {"evaluate.num_draws": 3},
    }
    runs = {name: run(name, **settings) for name, settings in others.items()}
    found = transfer_runs([first, *runs.values()]).warnings
    assert set(found) == {runs["dark"].name, runs["draws"].name}
    assert "pipeline.exposure.stops is [-0.6, -0.5], but [-0.05, 0.05]" in found[runs["dark"].name][0]
    assert "evaluate.num_draws is 3 in its study; 1" in found[runs["draws"].name][0]
    assert not transfer_runs([first], also=list(runs.values())).warnings


def test_images_of_the_training_in_another_evaluation_are_said(tmp_path, caplog):
    """By another split, and by other tables that name copies under other names."""
    folder = train(tiny_study(tmp_path, {"data.validation": False})).folder
    evaluate_run(folder)
    assert "trained on" not in caplog.text
    evaluate_run(folder, settings={"data.test": "train"})
    assert "2 of 2 images are images that the patch was trained on" in caplog.text
    caplog.clear()
    night = tmp_path / "night"
    night.mkdir()
    for name in ("placements.csv", "objects.csv"):
        text = (tmp_path / name).read_text().replace(",train,", ",test,")
        (night / name).write_text(text.replace("1.png", "copy.png"))
    for image in tmp_path.glob("*.png"):
        shutil.copy(image, night / image.name.replace("1.png", "copy.png"))
    tables = {f"data.{what}": str(night / f"{what}.csv") for what in ("placements", "objects")}
    evaluate_run(folder, settings=tables)
    assert "2 of 6 images are images that the patch was trained on, first " in caplog.text
