"""A project with everything that a command can read: studies, a run, a sweep and files of detections."""

import json
import shutil
from pathlib import Path

from PIL import Image
from study_fixture import make_study

RICH = """
[pipeline.mask]
stage = "create.mask"
masks = {side = {loader = "create.mask_image", weights = "mask.png"}}
[pipeline.proof]
stage = "create.soft_proof"
phases = ["eval"]
profile = {loader = "create.icc_profile", weights = "printer.icc"}
[pipeline.printable]
stage = "losses.non_printability"
colors = {loader = "losses.color_list", weights = "colors.csv"}
"""
"""The nodes by which `rich.toml` reads files of every kind."""


def make_project(folder: Path) -> dict[str, str]:
    """Make the project; return the names of its parts, relative to the folder."""
    import fpatch
    from fpatch import evaluate_run, load_study, train
    from fpatch.tune import Journal, Sweep, parse_space
    from fpatch.tune.folder.journal import Outcome, Point, Trial
    from fpatch.tune.plan import Plan

    study = make_study(folder)
    Image.new("RGB", (14, 10), (200, 30, 30)).save(folder / "poster.png")
    Image.new("L", (14, 10), 255).save(folder / "mask.png")
    profile = Path(fpatch.__file__).parent / "create/profiles/coated_tr006.icc"
    shutil.copyfile(profile, folder / "printer.icc")
    (folder / "colors.csv").write_text("0, 0, 0\n1, 1, 1\n")
    text = study.read_text()
    rich = text.replace("[pipeline.affine]", f"{RICH.strip()}\n[pipeline.affine]")
    rich = rich.replace("[evaluate]", '[evaluate]\ncontrols = {poster = "poster.png"}')
    (folder / "rich.toml").write_text(rich)
    sweep = '\n[sweep]\nnum_trials = 2\nsearch = "random"\n[space]\noptimizer.learning_rate = '
    (folder / "sweep.toml").write_text(f"{text}{sweep}{{low = 0.01, high = 0.3}}\n")

    run = train(load_study(study)).folder
    evaluate_run(run)
    for name in ("first", "second"):
        shutil.copytree(run, folder / name)
    for part in ("runs", "second/images", "second/figures"):
        shutil.rmtree(folder / part)
    plan = Plan(load_study(study), parse_space({"optimizer.learning_rate": (0.01, 0.3)}), Sweep(num_trials=2))
    journal = Journal.create(folder, "tiny", plan.config)
    for name, value in (("0000", 0.25), ("0001", 0.75)):
        journal.add(Trial(name, {"optimizer.learning_rate": 0.1}, seed=7))
        journal.add_point(name, Point(3, value, 0.02))
        journal.add_outcome(name, Outcome("finished", 0.0, 0.0))
    journal.folder.rename(folder / "searched-sweep")

    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "car"}], "annotations": [box]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps([{**box, "score": 0.9}]))
    return {"run": "first", "second": "second", "sweep": "searched-sweep"}
