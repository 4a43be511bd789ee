"""A defense as a setting: where its nodes stand, what it replaces, and what is none."""

import dataclasses

import pytest
import torch

import fpatch
from fpatch import compose, defend, infer, node
from fpatch.core.files import file_digest
from fpatch.demo.tiny import load_brightness, tiny_study
from fpatch.runs.measuring import measured_study
from fpatch.runs.naming import table_name
from fpatch.study.config import measure_otherwise, vary
from fpatch.study.defense import put_defense, take_defense
from fpatch.study.study import Study

FEW = {"stage": "defend.bit_depth", "num_bits": 2}
CLEANSER = {"stage": "defend.double_masking", "patch_px": [12, 12], "num_masks": 3}


@pytest.fixture
def study(tmp_path) -> Study:
    return tiny_study(tmp_path)


def test_a_filter_stands_before_the_victim_in_all_phases(study):
    defended = vary(study, {"defense": {"few": FEW, "blurred": {"stage": "defend.median"}}})
    paths = list(defended.pipeline)
    assert paths.index("defense/few") + 1 == paths.index("defense/blurred") == paths.index("victim") - 1
    assert defended.pipeline["defense/few"].stage == defend.bit_depth(2)
    assert defended.pipeline["defense/few"].alive("train")
    assert [p for p in paths if not p.startswith("defense/")] == list(study.pipeline)
    few = vary(study, {"defense": {"few": FEW}}).pipeline.at("test")
    params = {"tag": torch.rand(3, 6, 6)}
    out, _ = few(params, fpatch.random.key(0), batch_of(study))
    plain, _ = study.pipeline.at("test")(params, fpatch.random.key(0), batch_of(study))
    assert torch.equal(out["image"], (plain["image"] * 3).round() / 3)


def batch_of(study: Study) -> dict:
    scenes = study.data.open().split("test")
    return scenes.batch(scenes.image_ids) | {"draw": torch.zeros(4, dtype=torch.int64)}


def test_dotted_names_make_the_same_defense(study):
    dotted = {"defense.few.num_bits": 2, "defense.few.stage": "defend.bit_depth"}
    assert vary(study, dotted).config == vary(study, {"defense": {"few": FEW}}).config
    assert take_defense({"seed": 3}) == ({"seed": 3}, None)


def test_stages_stand_in_the_order_in_which_they_are_given(study, tmp_path):
    """A set of names has another order in every process, and a table of one order is not that of another."""
    names = [f"bits{i}" for i in (3, 5, 2, 7, 4, 6)]
    dotted = {f"defense.{name}.{own}": value for name in names for own, value in FEW.items()}
    assert [p for p in vary(study, dotted).pipeline if p.startswith("defense/")] == [
        f"defense/{name}" for name in names
    ]
    whole = {"defense": dict.fromkeys(names, FEW)}
    found = [measured_study(study, settings, tmp_path).settings for settings in (dotted, whole)]
    assert found[0] == found[1] == whole
    tables = [
        table_name("test", "best", own) for own in (found[0], {"defense": dict.fromkeys(names[::-1], FEW)})
    ]
    assert tables[0] != tables[1]


def test_a_patch_is_trained_through_it(study):
    """An oblivious patch learns from other images than an adaptive one."""
    nodes = {"shade": {"stage": "defend.gradient_smoothing", "threshold": 0.0}}
    losses = []
    for varied in (study, vary(study, {"defense": nodes})):
        run = fpatch.train(varied)
        losses.append([r["values"] for r in read_records(run) if "train/loss" in r.get("values", {})][-1])
    assert losses[0]["train/loss"] != losses[1]["train/loss"]


def read_records(run) -> list:
    import json

    return [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]


def test_another_defense_replaces_it_in_its_place(study):
    pipeline = study.pipeline
    parts = {}
    for path, n in pipeline.items():
        if path == "exposure":  # before the camera, where its owner wants it
            parts["defense/few"] = node(defend.bit_depth(1))
            parts["defense/more"] = node(compose.jpeg((20, 20)))
        parts[path] = n
    own = dataclasses.replace(study, pipeline=fpatch.pipeline(parts))
    other = vary(own, {"defense": {"blurred": {"stage": "defend.median"}}})
    assert [p for p in other.pipeline if p.startswith("defense/")] == ["defense/blurred"]
    assert list(other.pipeline).index("defense/blurred") == list(other.pipeline).index("exposure") - 1
    assert vary(own, {"defense": {}}).pipeline.config == study.pipeline.config


def test_a_certified_victim_takes_the_model_and_gives_it_back(study):
    defended = vary(study, {"defense": {"cleanser": CLEANSER}})
    n = defended.pipeline["victim"]
    assert n.stage.definition is defend.double_masking
    assert n.stage.config.patch_px == (12, 12)
    assert n.stage.config.model == study.pipeline["victim"].stage.config.model
    assert list(defended.pipeline) == list(study.pipeline)
    assert vary(defended, {"defense": {}}).pipeline.config == study.pipeline.config
    both = vary(defended, {"defense": {"few": FEW}}).pipeline
    assert both["victim"].stage.definition is infer.classifier
    assert "defense/few" in both


def test_a_victim_of_another_image_keeps_its_name(tmp_path):
    stages = {
        "lens": node(compose.exposure(), reads=["scene"], writes=["seen"]),
        "victim": node(infer.classifier(load_brightness()), reads={"image": "seen"}),
    }
    before = fpatch.pipeline(stages)
    nodes = put_defense(before.config, before, {"few": FEW})
    assert nodes["defense/few"] == {**FEW, "reads": {"image": "seen"}, "writes": {"image": "seen"}}


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        ({"x": {"stage": "defend.medium"}}, "defense.x: no definition 'defend.medium'; did you mean"),
        ({"x": {"num_bits": 2}}, "defense.x must be a node of a pipeline"),
        ({"x": 3}, "defense.x must be a node of a pipeline, got 3"),
        ({"x": {"stage": "losses.misclassify"}}, "losses.misclassify is no defense; take a stage that turns"),
        ({"x": {"stage": "implant.warp"}}, "implant.warp is no defense"),
        ({"x": {"stage": "infer.classifier"}}, "infer.classifier is no defense"),
        ({"x": CLEANSER, "y": CLEANSER}, "only one victim can stand in the place of another, got 2"),
        ({"x": {"stage": "defend.bit_depth", "bits": 2}}, "no setting 'bits'|unknown|num_bits"),
        ({"a/b": FEW}, "a/b"),
        (3, "defense"),
    ],
)
def test_what_is_no_defense(study, defense, message):
    with pytest.raises((ValueError, TypeError), match=message):
        vary(study, {"defense": defense})


def test_a_detector_has_no_double_masking(study):
    class Boxes(torch.nn.Module):
        def forward(self, images):
            return {
                "boxes": images.new_zeros(len(images), 1, 4),
                "logits": images.new_zeros(len(images), 1, 2),
            }

    before = fpatch.pipeline({"victim": infer.detector(Boxes().eval())})
    with pytest.raises(
        ValueError, match=r"double_masking defends classifiers, but 'victim' is infer.detector"
    ):
        put_defense({"victim": {"stage": "infer.detector"}}, before, {"x": CLEANSER})
    with pytest.raises(ValueError, match="the pipeline has no victim to defend"):
        put_defense({}, fpatch.pipeline({"noise": compose.read_noise()}), {"few": FEW})


def test_a_network_that_writes_images_is_a_defense(study):
    network = {"stage": "graph.module", "model": {"loader": "demo.brightness"}}
    wired = vary(study, {"defense": {"clean": {**network, "inputs": ["image"], "outputs": ["image"]}}})
    assert list(wired.pipeline).index("defense/clean") == list(wired.pipeline).index("victim") - 1
    with pytest.raises(ValueError, match=r"graph.module is no defense; take a stage that turns"):
        vary(study, {"defense": {"clean": {**network, "inputs": ["image"], "outputs": ["logits"]}}})


def test_the_weights_of_a_defense_are_recorded(study, tmp_path):
    weights = tmp_path / "cleaner.pt"
    weights.write_bytes(b"weights")
    model = {"loader": "demo.brightness", "weights": str(weights)}
    nodes = {"clean": {"stage": "graph.module", "model": model, "inputs": ["image"], "outputs": ["image"]}}
    found = measured_study(study, {"defense": nodes}, tmp_path / "runs" / "lamp")
    assert found.files == {"defense.clean.model": file_digest(weights)}
    assert found.settings["defense"]["clean"]["model"]["weights"] == "../../cleaner.pt"


def test_a_measurement_may_have_another_defense(study):
    assert "defense/few" in measure_otherwise(study, {"defense.few": FEW}).pipeline
    with pytest.raises(ValueError, match="the patch was trained with this setting"):
        measure_otherwise(study, {"pipeline.exposure.stops": [0.0, 0.0]})
