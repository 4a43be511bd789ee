"""Classes by name, and goals of losses and metrics that agree, from the study to the printed rate."""

import csv
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import make_inputs
from torch import nn

from fpatch import (
    Resource,
    Run,
    evaluate,
    evaluate_run,
    infer,
    losses,
    metrics,
    node,
    pipeline,
    random,
    replay_run,
    train,
)
from fpatch.cli.main import main
from fpatch.core.resource import define_loader
from fpatch.data import write_image
from fpatch.demo.tiny import tiny_study
from fpatch.doctor.examine import examine
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.replaying import compare
from fpatch.evaluation.transfer import transfer
from fpatch.graph.stage import define, deterministic
from fpatch.study.config import load_study, vary
from fpatch.study.goals import judge_goals
from fpatch.study.settings import ObjectiveConfig

STUDY = """
name = "colors"
[data]
placements = "placements.csv"
objects = "objects.csv"
size = [16, 16]
classes = ["red", "green", "blue"]
[pipeline]
pixels = {stage = "create.pixels", shapes = {tag = [3, 6, 6]}}
implant = {stage = "implant.warp"}
victim = {stage = "infer.classifier", model = {loader = "test_goals:colors"}}
misclassify = {stage = "losses.misclassify", target = "blue", phases = ["train"]}
hit = {stage = "metrics.class_hit", goal = "blue", phases = ["eval"]}
[objective]
weights = {misclassify = 1.0}
[optimizer]
learning_rate = 0.2
[train]
num_steps = 12
batch_size = 4
[evaluate]
every = 12
block = 3
[log]
tensorboard = false
mlflow = false
"""
CLASSES = ("red", "green", "blue")


class Colors(nn.Module):
    """The color of which an image has most."""

    def forward(self, images):
        return 60 * images.mean((-1, -2))


colors = define_loader("colors", lambda: Colors().eval())


def make_study(folder: Path) -> Path:
    """Red scenes, half of them nearly green, and one of the goal; the patch covers a seventh of each."""
    folder.mkdir(exist_ok=True)
    rows, objects = ["image,patch,split,xmin,ymin,xmax,ymax"], ["image,label,split,xmin,ymin,xmax,ymax"]
    for i in range(16):
        split = ("train", "validation", "test", "test")[i % 4]
        scene = torch.zeros(3, 16, 16)
        if i // 4 % 2:  # what red there is more than green lies under the patch
            scene[0], scene[1], scene[2] = 0.42, 0.49, 0.3
            scene[0, 4:10, 4:10] = 1.0
        else:
            scene[0], scene[1], scene[2] = 0.5, 0.1, 0.45
        label = "red"
        if i == 3:
            scene[2], label = 0.9, "blue"
        write_image(folder / f"{i}.png", scene)
        rows.append(f"{i}.png,tag,{split},4,4,10,10")
        objects.append(f"{i}.png,{label},{split},0,0,16,16")
    (folder / "placements.csv").write_text("\n".join(rows))
    (folder / "objects.csv").write_text("\n".join(objects))
    (folder / "study.toml").write_text(STUDY + f"runs = '{folder / 'runs'}'\n")
    return folder / "study.toml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return train(load_study(make_study(tmp_path_factory.mktemp("goals"))))


def count_by_hand(run: Run, table: str) -> list[tuple[str, str, str]]:
    """In each row: its class, and the color of its composed image, without a patch and with it."""
    images: dict[str, list[np.ndarray]] = {"none": [], "patch": []}

    def keep(rows, results):
        for condition, found in images.items():
            found.extend(results[condition]["image"].numpy())

    replay_run(run.folder, table=table, keep=("image",), on_block=keep)
    with (run.folder.parents[1] / "objects.csv").open() as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    own = [labels[Path(path).name] for path in run.load_table(table)["path"]]
    without, patched = ([CLASSES[x.mean((1, 2)).argmax()] for x in found] for found in images.values())
    return list(zip(own, without, patched, strict=True))


def test_the_printed_rate_is_that_of_an_independent_count(run, capsys):
    assert main(["evaluate", str(run.folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    rows = count_by_hand(run, "test")
    counted = [patched == "blue" for own, without, patched in rows if without == own != "blue"]
    untargeted = [patched != own for own, without, patched in rows if without == own]
    assert (len(counted), len(untargeted)) == (7, 8)  # one image is blue itself
    assert 0 < sum(counted) < sum(untargeted), "the two questions have different answers here"
    rate = 100 * sum(counted) / len(counted)
    assert re.search(rf"trained patch │ {rate:.1f}", said)
    assert "answered blue %" in said
    assert "success: answered 'blue' with the patch, among the 7 of 7 rows" in said
    assert "score of 'blue' gained" in said
    summary = json.loads((run.folder / "tables/test.summary.json").read_text())
    assert summary["rates"]["patch"]["value"] == pytest.approx(rate / 100)
    assert summary["goal"] == "blue"
    table = run.load_table("test")
    assert set(table["goal"]) == {"blue"}
    assert table["reached/patch"].tolist() == [o != "blue" == p for o, _, p in rows]


def test_a_finished_run_is_measured_with_another_metric(run, capsys):
    """The table has a name of its own, replays by its own settings, and leaves the earlier one alone."""
    main(["evaluate", str(run.folder)])
    before = {p.name: p.read_bytes() for p in (run.folder / "tables").glob("test.*")}
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), "--pipeline.hit.goal=green"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "answered 'green' with the patch" in said
    assert "pipeline.hit.goal = green" in said
    assert {p.name: p.read_bytes() for p in (run.folder / "tables").glob("test.*")} == before
    recorded = json.loads((run.folder / "tables/test-hit-goal-green.json").read_text())
    assert recorded["settings"] == {"pipeline.hit.goal": "green"}
    assert (run.folder / "figures/test-hit-goal-green.png").is_file()
    for table in ("test", "test-hit-goal-green"):
        assert main(["replay", str(run.folder), "--table", table, "--verify"]) == 0
    assert set(run.load_table("test-hit-goal-green")["goal"]) == {"green"}
    assert run.read_json("config.json")["pipeline"]["hit"]["goal"] == "blue"
    _, rates = evaluate_run(run.folder, settings={"pipeline.hit.goal": None})
    rows = count_by_hand(run, "test-hit-goal-None")
    assert rates.goal is None
    assert rates.rates["patch"].value == np.mean([p != o for o, without, p in rows if without == o])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--pipeline.hit.goal=gren", "'gren', which is no class; did you mean 'green'?"),
        ("--pipeline.misclassify.target=green", "--pipeline.misclassify.target: the patch was trained with"),
        ("--pipeline.implant.jitter_frac=0.1", "the patch was trained with this setting"),
        ("--evaluate.every=3", "the patch was trained with this setting"),
        ("--optimizer.learning_rate=3", "the patch was trained with this setting"),
        ("--data.train=test", "the patch was trained with this setting"),
        ("--pipeline.hut.goal=green", "there is no 'hut'; did you mean 'hit'?"),
    ],
)
def test_an_evaluation_takes_no_other_settings(run, capsys, setting, said):
    assert main(["evaluate", str(run.folder), setting]) == 2
    assert said in capsys.readouterr().err


def test_a_changed_class_is_a_difference(run):
    """The name of the goal in the table is compared like every other column."""
    evaluate_run(run.folder)
    replayed, _ = replay_run(run.folder)
    assert not replayed.differences
    table = run.load_table("test") | {"goal": np.full(8, "green")}
    said = [what for _, what, _ in compare(table, {"goal": replayed.columns["goal"]}, np.arange(8))]
    assert said.count("goal: green was logged, blue came out") == 8


# Names


def test_the_config_keeps_the_name_and_the_pipeline_runs_with_the_number(tmp_path):
    study = load_study(make_study(tmp_path))
    assert study.config["pipeline"]["misclassify"]["target"] == "blue"
    assert "target='blue'" in repr(study.pipeline)
    assert study.placed["misclassify"].stage.config.target == study.placed["hit"].stage.config.goal == 2
    assert vary(study, {"pipeline.hit.goal": 1}).placed["hit"].stage.config.goal == 1
    with pytest.raises(ValueError, match=r"metrics.class_hit\(goal\) is 'blue', the name of a class, and no"):
        study.pipeline["hit"].stage.apply({}, {}, make_inputs())


def test_without_classes_the_objects_file_counts(tmp_path):
    path = make_study(tmp_path)
    path.write_text(path.read_text().replace('classes = ["red", "green", "blue"]\n', ""))
    assert load_study(path).placed["hit"].stage.config.goal == 1  # red comes first, then blue
    (tmp_path / "objects.csv").write_text((tmp_path / "objects.csv").read_text().replace("label", "name"))
    with pytest.raises(ValueError, match="column 'label' is missing"):
        load_study(path)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "pipeline.hit.goal",
            "bleu",
            r"metrics.class_hit\(goal\) is 'bleu', which is no class; did you",
        ),
        ("pipeline.misclassify.target", "bleu", "did you mean 'blue'"),
        ("pipeline.misclassify.target", True, "expected a whole number or a string"),
        ("pipeline.misclassify.target", -1, "must be at least 0, got -1"),
        ("data.objects", False, "the class 'blue', but the data name no classes"),
    ],
)
def test_a_name_that_is_no_class_is_an_error_of_the_study(tmp_path, setting, value, message):
    more = {"data.classes": False} if setting == "data.objects" else {}
    with pytest.raises(ValueError, match=message):
        load_study(make_study(tmp_path), {setting: value} | more)


def test_a_number_beyond_the_classes_is_an_error_of_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"misclassify\(target\) is 3, but the victim has 3 classes, 0 to 2"):
        train(load_study(make_study(tmp_path), {"pipeline.misclassify.target": 3}))


def test_all_settings_that_are_a_class_take_a_name():
    made = pipeline(
        {
            "hallucinate": losses.hallucinate("b"),
            "relabel": losses.relabel("b"),
            "objects": metrics.object_hit(goal="b"),
            "hit": metrics.detection_hit(goal="b"),
        }
    ).with_classes(("a", "b"))
    numbers = [n.stage.config for n in made.values()]
    settings = ("label", "target", "goal", "goal")
    assert [getattr(c, n) for c, n in zip(numbers, settings, strict=True)] == [1] * 4


# Agreement


@dataclass(frozen=True)
class Own:
    """A loss of the user's own, which may aim at a class without saying so."""


def apply_own(config, patch_params, sample, values):
    return {"own": values["logits"][:, 0]}


own = define("own", Own, deterministic, apply_own, reads=("logits",), writes=("own",), role="loss")

BLUE, GREEN = "pipeline.misclassify.target", "pipeline.hit.goal"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({BLUE: 2}, None),
        ({GREEN: 2}, None),
        ({GREEN: None}, "it has no goal.* 'misclassify' aims at 'blue'.*set pipeline.hit.goal = 'blue'"),
        ({GREEN: None, BLUE: 2}, "it has no goal.* 'misclassify' aims at 'blue'"),
        ({GREEN: "green"}, "is the answer 'green', while 'misclassify' aims at 'blue'"),
        ({BLUE: None}, "is the answer 'blue', while 'misclassify' aims at no class.*leave the goal out"),
        ({BLUE: None, GREEN: None}, None),
    ],
)
def test_goals_that_differ_are_said(tmp_path, settings, said):
    study = load_study(make_study(tmp_path), settings)
    found = [*judge_goals(study)]
    assert len(found) == (said is not None)
    warned = [f for f in examine(study).findings if "another question" in f.what]
    assert [(f.level, f.where, f.what) for f in warned] == [("warning", *one) for one in found]
    for where, sentence in found:
        assert where == "hit"
        assert re.search(said, sentence)


def test_goals_behind_an_ensemble_and_of_objects_are_seen(tmp_path):
    """A joined term has the goals of its parts; a metric of objects stands beside that of rows."""
    study = load_study(make_study(tmp_path))

    def detect(params, key, batch):
        return {**batch, "detections": {}}, {}

    made = study.pipeline.without("misclassify", "hit", "victim") | {
        "detector": node(detect, reads=["image"], writes=["detections"]),
        "relabel": losses.relabel("green"),
        "vanish": losses.vanish(),
        "hit": node(metrics.object_hit(goal="blue"), phases="eval"),
        "joined": losses.ensemble(("relabel", "vanish"), "mean"),
        "rows": node(metrics.detection_hit(), phases="eval"),
    }
    joined = replace(study, pipeline=made, objective=ObjectiveConfig({"ensemble": 1.0}))
    assert {where for where, _ in judge_goals(joined)} == {"hit", "rows"}


def test_a_loss_without_weight_has_no_goal(tmp_path):
    study = load_study(make_study(tmp_path), {GREEN: None})
    made = study.pipeline | {"smooth": losses.total_variation()}
    weights = {"misclassify": 0.0, "total_variation": 1.0}
    assert [*judge_goals(replace(study, pipeline=made, objective=ObjectiveConfig(weights)))] == []


def test_a_loss_of_ones_own_may_hide_its_goal(tmp_path):
    study = load_study(make_study(tmp_path))
    made = study.pipeline.without("misclassify") | {"own": own()}
    hidden = replace(study, pipeline=made, objective=ObjectiveConfig({"own": 1.0}))
    assert [*judge_goals(hidden)] == []


def test_training_says_it_once(tmp_path, caplog):
    study = load_study(make_study(tmp_path), {GREEN: None, "train.num_steps": 2})
    train(study)
    said = [r.getMessage() for r in caplog.records if "another question" in r.getMessage()]
    assert said == [f"{where}: {what}" for where, what in judge_goals(study)]
    assert len(said) == 1
    caplog.clear()
    train(load_study(make_study(tmp_path / "agreed"), {"train.num_steps": 2}))
    assert "another question" not in caplog.text  # its images of one color are equal, which is said


def test_a_transfer_between_goals_is_refused(tmp_path):
    plain = tiny_study(tmp_path)
    aimed = vary(plain, {"pipeline.hit.goal": "nothing"})
    pipelines = {"plain": plain.placed.at("test"), "aimed": aimed.placed.at("test")}
    patches = {n: make_patches(p, p.init(random.key(0))) for n, p in pipelines.items()}
    dataset = plain.data.open().split("test")
    with pytest.raises(ValueError, match="goal is 'nothing' on 'aimed', but None on 'plain'; give both"):
        transfer(pipelines, patches, dataset, random.key(1))
    both = transfer({n: pipelines["aimed"] for n in pipelines}, patches, dataset, random.key(1))
    assert both.goal == "nothing"


def test_every_victim_of_several_has_the_goal_in_its_group(tmp_path):
    """And its table replays, with the name of the class in it."""
    plain = tiny_study(tmp_path)
    hit = node(metrics.class_hit(goal="nothing"), phases="eval")
    victims = {name: infer.classifier(Resource("demo.brightness")) for name in ("a", "b")}
    made = plain.pipeline.without("misclassify", "hit", "victim") | {
        "victims": infer.ensemble(victims, {"misclassify": losses.misclassify("nothing"), "hit": hit}),
    }
    terms = {f"victims/{name}/misclassify": 1.0 for name in victims}
    settings = replace(plain.evaluate, metric="victims/b/found")
    study = replace(plain, pipeline=made, objective=ObjectiveConfig(terms), evaluate=settings)
    assert [*judge_goals(study)] == []
    finished = train(study)
    _, rates = evaluate_run(finished.folder)
    assert (rates.goal, rates.rates["patch"].value) == ("nothing", 1.0)
    assert set(finished.load_table("test")["victims/a/goal"]) == {"nothing"}
    assert not replay_run(finished.folder)[0].differences
    untargeted = {"pipeline.victims/a/hit.goal": None}
    assert {where for where, _ in judge_goals(vary(study, untargeted))} == set()  # the metric is that of b
    aimed = {where: what for where, what in judge_goals(vary(study, {"pipeline.victims/b/hit.goal": None}))}
    assert aimed["victims/b/hit"].endswith("set pipeline.victims/b/hit.goal = 'nothing'")


def test_a_metric_is_held_against_the_losses_of_its_own_victim(tmp_path):
    """Two victims with goals of their own: the goal of the one says nothing of the other's metric."""
    plain = tiny_study(tmp_path, {"data.classes": ["lamp", "nothing", "third"]})
    victims = {name: infer.classifier(Resource("demo.brightness")) for name in ("a", "b")}
    parts = {"wrong": losses.misclassify(), "hit": node(metrics.class_hit(), phases="eval")}
    made = plain.pipeline.without("misclassify", "hit", "victim") | {"v": infer.ensemble(victims, parts)}
    terms = {f"v/{name}/misclassify": 1.0 for name in victims}
    settings = replace(plain.evaluate, metric="v/b/found")
    study = replace(plain, pipeline=made, objective=ObjectiveConfig(terms), evaluate=settings)
    cases = [
        ({"a/wrong.target": "nothing"}, None),
        ({"a/wrong.target": "nothing", "b/hit.goal": "nothing"}, "'v/b/wrong' aims at no class"),
        ({"a/wrong.target": "nothing", "b/wrong.target": "third"}, "'v/b/wrong' aims at 'third'"),
        ({"a/wrong.target": "nothing", "b/wrong.target": "third", "b/hit.goal": "third"}, None),
        (
            {"a/wrong.target": "nothing", "b/wrong.target": "third", "b/hit.goal": "nothing"},
            "aims at 'third'",
        ),
    ]
    for settings, said in cases:
        found = [*judge_goals(vary(study, {f"pipeline.v/{name}": value for name, value in settings.items()}))]
        assert [where for where, _ in found] == ([] if said is None else ["v/b/hit"])
        assert all(str(said) in sentence for _, sentence in found)


def test_names_that_are_given_with_another_setting_are_kept(tmp_path):
    """The names of a node follow its settings only where nobody gives them."""
    plain = tiny_study(tmp_path)
    parts = {"wrong": losses.misclassify(), "hit": node(metrics.class_hit(), phases="eval")}
    victims = {"a": infer.classifier(Resource("demo.brightness"))}
    made = plain.pipeline.without("hit", "victim", "misclassify") | {"v": infer.ensemble(victims, parts)}
    study = replace(plain, pipeline=made)
    own = {n: f"aimed/{n}" for n in ("found", "confidence", "answer", "label", "has_object", "reached")}
    own["goal_score"] = "aimed/goal_score"
    settings = {"pipeline.v/a/hit.goal": "nothing", "pipeline.v/a/hit.writes": own}
    assert vary(study, settings).pipeline["v/a/hit"].writes == own
    table = study.config["pipeline"]["v/a/hit"] | {"goal": "nothing", "writes": own}
    assert vary(study, {"pipeline.v/a/hit": table}).pipeline["v/a/hit"].writes == own


def test_a_goal_given_later_stays_in_the_group_of_its_victim(tmp_path):
    """And one that was wired apart from the answers that it belongs to is refused."""
    plain = tiny_study(tmp_path)
    parts = {"hit": node(metrics.class_hit(), phases="eval")}
    made = plain.pipeline.without("hit", "victim", "misclassify") | {
        "v": infer.ensemble({n: infer.classifier(Resource("demo.brightness")) for n in ("a", "b")}, parts)
    }
    study = replace(plain, pipeline=made)
    aimed = vary(study, {"pipeline.v/b/hit.goal": "nothing"}).pipeline
    assert aimed["v/b/hit"].writes["reached"] == "v/b/reached"
    assert aimed["v/a/hit"].writes == study.pipeline["v/a/hit"].writes
    apart = node(metrics.class_hit(goal=1), phases="eval", writes={"found": "stop/found"})
    test = (plain.pipeline.without("misclassify") | {"hit": apart}).at("test")
    params, dataset = test.init(random.key(0)), plain.data.open().split("test")
    with pytest.raises(ValueError, match="'stop/found', but 'reached' as 'reached', so that the rate would"):
        evaluate(test, params, dataset, random.key(1))
