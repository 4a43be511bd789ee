"""The doctor: a study that can learn, and deliberately broken ones, each for its own reason."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from study_fixture import STUDY, change, make_study, run_fpatch, write_csv

from fpatch.doctor.examine import examine
from fpatch.doctor.findings import Finding
from fpatch.graph.stage import define, deterministic
from fpatch.ops.geometry import quad_bounds
from fpatch.study.config import load_study


@dataclass(frozen=True)
class Setting:
    """None."""


def apply_root(config, patch_params, sample, values):
    return {"image": values["image"].sub(values["image"].detach()).sqrt() + values["image"].detach()}


def apply_blind(config, patch_params, sample, values):
    return {"image": values["image"].detach() + 0 * values["image"]}


def grumble(config, values):
    return {"a picture is too pretty": [f"{float(image.mean()):.3f}" for image in values["image"]]}


def where_rear_is(values):
    """The pixels of the rear patch, which is the second of two, [b, 1, h, w]."""
    x0, y0, x1, y1 = quad_bounds(values["quads"][:, 1])[..., None, None].unbind(1)
    h, w = values["image"].shape[-2:]
    x, y = torch.arange(w), torch.arange(h)[:, None]
    inside = (x >= x0 - 1) & (x <= x1 + 1) & (y >= y0 - 1) & (y <= y1 + 1)
    return (inside & values["quad_valid"][:, 1, None, None])[:, None]


def apply_cover(config, patch_params, sample, values):
    return {"image": torch.where(where_rear_is(values), 0.5, values["image"])}


def apply_curtain(config, patch_params, sample, values):
    image = values["image"]
    return {"image": torch.where(where_rear_is(values), image.detach(), image)}


def apply_freeze(config, patch_params, sample, values):
    return {"patch": {**values["patch"], "rear": values["patch"]["rear"].detach()}}


def apply_peek(config, patch_params, sample, values):
    return {"peek": values["image"] * ~where_rear_is(values)}


def apply_glance(config, patch_params, sample, values):
    return {"glance": values["peek"].flatten(1).mean(1)}


freeze = define("freeze", Setting, deterministic, apply_freeze, reads=("patch",), writes=("patch",))
glance = define(
    "glance", Setting, deterministic, apply_glance, reads=("peek",), writes=("glance",), role="loss"
)
quads = ("image", "quads", "quad_valid")
peek = define("peek", Setting, deterministic, apply_peek, reads=quads, writes=("peek",))
cover = define("cover", Setting, deterministic, apply_cover, reads=quads, writes=("image",))
curtain = define("curtain", Setting, deterministic, apply_curtain, reads=quads, writes=("image",))
root = define("root", Setting, deterministic, apply_root, reads=("image",), writes=("image",), check=grumble)
blind = define("blind", Setting, deterministic, apply_blind, reads=("image",), writes=("image",))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("doctor"))


def find(path: Path, overrides=None) -> tuple[list[Finding], dict]:
    diagnosis = examine(load_study(path, overrides))
    assert diagnosis.can_learn == all(f.level != "error" for f in diagnosis.findings)
    return list(diagnosis.findings), diagnosis.stages


def rewrite(path: Path, *changes: tuple[str, str]) -> Path:
    """The study with some of its text replaced."""
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    changed = path.with_name("rewritten.toml")
    changed.write_text(text)
    return changed


def insert(path: Path, name: str, before: str) -> Path:
    """The study with one more stage, in a file of its own."""
    changed = path.with_name(f"{name}.toml")
    section = f'[pipeline.{name}]\nstage = "test_doctor:{name}"\n'
    changed.write_text(path.read_text().replace(before, section + before))
    return changed


def test_a_sound_study_has_no_findings(study):
    findings, stages = find(study)
    assert findings == []
    assert list(stages) == [
        *("pixels", "smooth", "affine", "implant", "camera/exposure", "camera/noise", "victim", "vanish"),
    ]


def test_what_was_measured_is_what_autograd_and_pixels_say(study):
    loaded = load_study(study)
    _, stages = find(study)
    from fpatch import random
    from fpatch.graph.samples import control
    from fpatch.optim.gradient import value_and_grad
    from fpatch.optim.objective import Objective
    from fpatch.study.setup import set_up

    parts = set_up(loaded)
    dataset = parts.dataset.split("train")
    batch = dataset.batch(dataset.image_ids)
    train = loaded.pipeline.at("train")
    key = random.fold_in(random.fold_in(parts.initial.key, "train"), 0)
    sample = train.sample(key, batch)
    grads, _ = value_and_grad(Objective(train, loaded.objective.weights))(parts.initial.params, sample, batch)
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    torch.testing.assert_close(stages["pixels"].gradient, float(norm), rtol=1e-4, atol=0)

    patched = train.upto("implant").apply(parts.initial.params, sample, batch)["image"]
    clean = train.upto("implant").apply(parts.initial.params, control(sample), batch)["image"]
    share = (patched != clean).any(1).flatten(1).float().mean(1)
    assert stages["implant"].covered == float(share.median())
    torch.testing.assert_close(
        stages["implant"].delta, float((patched - clean).abs().mean()), rtol=1e-4, atol=0
    )
    _, stages = find(study, {"pipeline.camera/exposure.stops": [1.0, 1.0]})
    sample["camera/exposure"]["stops"] = torch.ones(len(share))
    bright = train.upto("camera/exposure").apply(parts.initial.params, sample, batch)["image"]
    dim = train.upto("camera/exposure").apply(parts.initial.params, control(sample), batch)["image"]
    changed = (bright != dim).any(1)
    edge = ((bright == 1) | (bright == 0)).float().mean(1)
    expected = float(edge[changed].mean())
    assert 0.1 < expected < 1
    torch.testing.assert_close(stages["camera/exposure"].clipped, expected)


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        ({"pipeline.camera/exposure.stops": [9.0, 10.0]}, "camera/exposure", "black or white after it (0 %"),
        ({"pipeline.implant.scale": [0.001, 0.002]}, "implant", "it is too small; enlarge it"),
        ({"objective.weights.vanish": 0.0}, "objective.weights", "the same with the patch and without it"),
        ({"optimizer.learning_rate": 1e-12}, "optimizer", "does not move the patch 'side'"),
        ({"optimizer.learning_rate": 1e-11}, "optimizer", "does not move the patch 'rear'"),
    ],
)
def test_a_broken_setting_is_an_error_with_its_place(study, overrides, where, what):
    findings, _ = find(study, overrides)
    assert any(f.level == "error" and f.where == where and what in f.what for f in findings), findings


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        ({"pipeline.camera/exposure.stops": [3.0, 3.0]}, "camera/exposure", "are the same after it"),
        ({"pipeline.camera/exposure.stops": [-1.0, 9.0]}, "camera/exposure", "black or white after it (0 %"),
        ({"pipeline.implant.scale": [0.15, 0.15]}, "implant", "% of the image (median)"),
    ],
)
def test_a_weak_patch_is_a_warning(study, overrides, where, what):
    findings, _ = find(study, overrides)
    assert all(f.level == "warning" for f in findings)
    assert any(f.where == where and what in f.what for f in findings), findings


WITHOUT_SMOOTHNESS = (", total_variation = 0.05", "")


@pytest.mark.parametrize("others", [(), (WITHOUT_SMOOTHNESS,)])
@pytest.mark.parametrize(
    ("masks", "patches"),
    [
        ("rear = 0.0", "patch 'rear'"),
        ("rear = 0.001", "patch 'rear'"),
        ("side = 0, rear = 0", "patch 'side', patch 'rear'"),
    ],
)
def test_a_masked_patch_is_named_with_its_mask_and_nothing_else(study, others, masks, patches):
    outline = f'[pipeline.outline]\nstage = "create.mask"\nmasks = {{{masks}}}\n'
    findings, _ = find(rewrite(study, ("[pipeline.implant]", f"{outline}[pipeline.implant]"), *others))
    (finding,) = findings
    assert (finding.level, finding.where) == ("error", "implant")
    assert finding.what.startswith(f"{patches}: changes no pixel of any image: its mask is 0 or nearly 0")
    assert finding.what.endswith("; correct it in 'outline'")


@pytest.mark.parametrize("stops", ["[9.0, 10.0]", "[-10.0, -9.0]"])
def test_a_camera_that_shows_nothing_in_training_is_the_one_error(study, stops):
    train_only = ("stops = [-0.2, 0.2]", f'stops = {stops}\nphases = ["train"]')
    (finding,) = find(rewrite(study, train_only))[0]
    assert (finding.level, finding.where) == ("error", "camera/exposure")
    assert finding.what.startswith("100 % of the image is black or white after it (0 % before), in train;")


def test_a_victim_that_is_blinded_is_not_told_to_be_trained(study):
    findings, _ = find(study, {"pipeline.camera/exposure.stops": [-10.0, -9.0]})
    assert findings[0].where == "camera/exposure"
    assert "in train, validation, test; weaken it" in findings[0].what
    nothing = [f for f in findings if "there is nothing to attack" in f.what]
    assert [f.where for f in nothing] == ["validation", "test"]
    assert all(f.what.endswith("correct 'camera/exposure' first") for f in nothing)
    assert len(findings) == 3


@pytest.mark.parametrize("others", [(), (WITHOUT_SMOOTHNESS,)])
def test_a_victim_that_looks_at_the_clean_photograph_is_named(study, others):
    reads = ('stage = "infer.detector"', 'stage = "infer.detector"\nreads = {image = "scene"}')
    (finding,) = find(rewrite(study, reads, *others))[0]
    assert (finding.level, finding.where) == ("error", "victim")
    assert "let it read 'image'" in finding.what


def test_a_negative_weight_is_a_warning(study):
    (finding,) = find(study, {"objective.weights.vanish": -1.0})[0]
    assert (finding.level, finding.where) == ("warning", "objective.weights")
    assert finding.what.startswith("vanish = -1: ")


def test_photographs_without_an_object_are_counted(tmp_path):
    path = make_study(tmp_path)
    objects = tmp_path / "objects.csv"
    lines = objects.read_text().splitlines()
    objects.write_text("\n".join(line for line in lines if not line.startswith("photograph-02")))
    findings, _ = find(path)
    said = "1 of 5 training images (20 %) have no object for the loss term 'vanish'; they are left out of"
    assert [f.level for f in findings if f.where == "vanish" and f.what.startswith(said)] == ["warning"]
    objects.write_text("\n".join(line for line in lines if ",train," not in line))
    findings, _ = find(path)
    errors = [f for f in findings if f.level == "error"]
    assert any(
        "none of the 5 training images has an object for the loss term 'vanish'" in f.what for f in errors
    )


def test_a_patch_that_no_training_photograph_has(tmp_path):
    path = make_study(tmp_path)
    file = tmp_path / "placements.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "rear,train" not in line) + "\n")
    (finding,) = find(path)[0]
    assert (finding.level, finding.where) == ("error", "patch 'rear'")
    assert "no training image has a placement of it" in finding.what


def test_a_patch_that_the_first_photographs_lack_is_looked_for(tmp_path):
    path = make_study(tmp_path)
    file = tmp_path / "placements.csv"
    lines = file.read_text().splitlines()
    early = tuple(f"photograph-0{i}.png,rear" for i in range(3))
    file.write_text("\n".join(line for line in lines if not line.startswith(early)) + "\n")
    assert examine(load_study(path), num_rows=2).findings == ()


def test_a_patch_that_ends_behind_the_implant_is_named_alone(study):
    findings, _ = find(insert(study, "cover", "[pipeline.victim]"))
    (error,) = [f for f in findings if f.level == "error"]
    assert error.where == "cover"
    assert error.what.startswith("patch 'rear': ends here: in none of 3 images")


def test_a_patch_far_from_every_object_has_no_gradient_and_a_reason(study):
    findings, _ = find(
        insert(study, "curtain", "[pipeline.victim]"), {"objective.weights.total_variation": 0.0}
    )
    (error,) = [f for f in findings if f.level == "error"]
    assert error.where == "curtain"
    assert error.what.startswith("patch 'rear': the gradient ends here: ")


def test_a_gradient_that_ends_before_the_implant_names_the_stage(study):
    findings, _ = find(
        insert(study, "freeze", "[pipeline.affine]"), {"objective.weights.total_variation": 0.0}
    )
    (error,) = [f for f in findings if f.level == "error"]
    assert error.where == "patch 'rear'"
    assert "no gradient reaches it; it exists in the output of 'freeze' " in error.what


def test_a_patch_that_the_loss_does_not_look_at_is_said_to_be_beside(study):
    sections = "".join(f'[pipeline.{n}]\nstage = "test_doctor:{n}"\n' for n in ("peek", "glance"))
    weights = ("{vanish = 1.0, total_variation = 0.05}", "{glance = 1.0}")
    (error,) = find(rewrite(study, ("[pipeline.victim]", f"{sections}[pipeline.victim]"), weights))[0]
    assert (error.level, error.where) == ("error", "patch 'rear'")
    assert "no gradient reaches it; the output of 'peek' " in error.what
    assert error.what.endswith("depends on others, but not on it; move or enlarge it")


def test_a_term_of_another_phase_is_no_unknown_one(study):
    path = rewrite(study, ('stage = "losses.vanish"', 'stage = "losses.vanish"\nphases = ["eval"]'))
    with pytest.raises(
        ValueError, match="'vanish' is written by 'vanish', which runs in test and validation only"
    ):
        examine(load_study(path))


def test_no_rows_are_refused(study):
    with pytest.raises(ValueError, match=r"examine\(num_rows\) must be at least 1, got 0"):
        examine(load_study(study), num_rows=0)


def test_a_gradient_that_ends_in_a_stage_names_it(study):
    findings, stages = find(insert(study, "blind", "[pipeline.victim]"))
    assert stages["camera/noise"].gradient == 0.0
    assert stages["blind"].gradient > 0.0
    assert any(
        f.level == "error" and f.where == "blind" and "the gradient ends here" in f.what for f in findings
    )


def test_a_gradient_that_is_no_number_names_the_stage_and_every_check_is_asked(study):
    findings, _ = find(insert(study, "root", "[pipeline.victim]"))
    errors = [f for f in findings if f.level == "error"]
    assert {f.where for f in errors} >= {"patch 'side'", "patch 'rear'"}
    assert all(
        "not finite" in f.what and "'camera/noise'" in f.what for f in errors if f.where.startswith("patch")
    )
    (said,) = [f.what for f in findings if f.where == "root" and f.level == "warning"]
    assert said.startswith("a picture is too pretty (5 times): 0.")


def test_every_photograph_is_checked_whatever_the_batch(study, monkeypatch):
    path = load_study(insert(study, "root", "[pipeline.victim]"))
    said = [[f.what for f in examine(path, n).findings if f.where == "root"] for n in (16, 2)]
    assert said[0] == said[1]
    monkeypatch.setattr("fpatch.doctor.judgements.MAX_SHOWN", 3)
    (short,) = [f.what for f in examine(path).findings if f.where == "root"]
    assert short.endswith("; and 2 more")
    assert said[0][0].startswith(short.removesuffix("; and 2 more"))


def move_out(path: Path, photographs: str) -> None:
    """Corners of these photographs' patches 400 pixels to the right."""
    file = path.with_name("placements.csv")
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    for row in rows:
        if row[0].startswith(photographs):
            row[3::2] = [str(float(x) + 400) for x in row[3::2]]
    write_csv(file, [header, *rows])
    section = "[pipeline.pixels]"
    path.write_text(path.read_text().replace(section, f"outside_frac = 10.0\n{section}", 1))


def test_a_patch_outside_every_picture(tmp_path):
    path = make_study(tmp_path)
    move_out(path, "photograph")
    findings, stages = find(path)
    assert stages["implant"].covered == 0.0
    (error,) = [f for f in findings if f.level == "error"]
    assert error.where == "implant"
    assert error.what.startswith("patch 'side', patch 'rear': changes no pixel of any image: its corners lie")


def test_photographs_without_the_patch_are_listed(tmp_path):
    path = make_study(tmp_path)
    move_out(path, "photograph-02")
    findings, _ = find(path)
    assert [f.what for f in findings] == [
        "patch 'side': changes no pixel in 1 of 5 images that have it: photograph-02.png",
        "patch 'rear': changes no pixel in 1 of 3 images that have it: photograph-02.png",
    ]


def test_a_victim_that_finds_nothing_leaves_nothing_to_attack(tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_study(tmp_path)
    weights = load_file(tmp_path / "tiny.safetensors")
    save_file(
        weights | {"norm.running_mean": weights["norm.running_mean"] + 5}, tmp_path / "tiny.safetensors"
    )
    findings, _ = find(path)
    nothing = [f for f in findings if "there is nothing to attack" in f.what]
    assert {f.where for f in nothing} == {"validation", "test"}
    assert all(f.level == "error" for f in nothing)


@pytest.mark.slow
def test_the_command_prints_the_report_and_exits_1(study):
    sound = run_fpatch("doctor", study, cwd=study.parent)
    assert sound.returncode == 0, sound.stderr
    assert "the patch can learn" in sound.stdout
    assert "camera/exposure" in sound.stdout
    broken = run_fpatch("doctor", study, "--optimizer.learning_rate", "1e-12", cwd=study.parent)
    assert broken.returncode == 1
    assert (
        "error optimizer: the first step does not move the patch 'side' (learning rate 1e-12)"
        in broken.stdout
    )
    missing = run_fpatch("doctor", study.with_name("missing.toml"), cwd=study.parent)
    assert missing.returncode == 2


def test_a_victim_in_training_mode_is_reported(study):
    path = study.with_name("training.toml")
    path.write_text(STUDY.replace("study_fixture:tiny", "test_doctor:in_training"))
    change(path, runs=str(study.parent / "runs"))
    findings, stages = find(path)
    assert stages == {}
    (finding,) = findings
    assert finding.where == "train, validation, test"
    assert "is in training mode" in finding.what
    assert "'victim'" in finding.what


def _load_in_training(weights):
    from study_fixture import load_tiny

    return load_tiny(weights).train()


def _register():
    from fpatch.core.resource import define_loader

    return define_loader("in_training", _load_in_training)


in_training = _register()


def test_small_placements_are_named_for_all_photographs(tmp_path):
    path = make_study(tmp_path)
    file = tmp_path / "placements.csv"
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    for row in rows:
        if row[0] in ("photograph-01.png", "photograph-03.png") and row[1] == "rear":
            x, y = float(row[3]), float(row[4])
            row[3:] = [str(v) for v in (x, y, x + 2, y, x + 2, y + 3, x, y + 3)]
    write_csv(file, [header, *rows])
    findings, _ = find(path)
    (small,) = [f.what for f in findings if "less than 4 px" in f.what]
    assert "(2 times): " in small
    assert "photograph-01.png, placement 1: " in small
    assert "photograph-03.png, placement 1: " in small
