"""The experiment on real photographs: its parts, and a quick run that can be replayed."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from study_fixture import environment

from fpatch import random
from fpatch.ops.geometry import quad_bounds
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "toycar"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the photographs are not here: {DATA}")


@pytest.fixture
def toycar(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import toycar

    return toycar


def silent(task, done, total, note=""):
    pass


def test_near_frames_of_one_video_are_one_viewpoint(toycar):
    photos = [Path(p) for p in ("a/100.png", "b/001.png", "a/091.png", "a/111.png", "b/008.png", "a/121.png")]
    viewpoint = toycar.find_viewpoints(photos)
    groups = {frozenset(np.flatnonzero(viewpoint == v).tolist()) for v in viewpoint}
    assert groups == {frozenset({0, 2}), frozenset({1, 4}), frozenset({3, 5})}


def test_folds_keep_viewpoints_whole_and_are_of_even_size(toycar):
    viewpoint = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 5])
    fold_of = toycar.deal(viewpoint, num_folds=3)
    assert all(len(set(fold_of[viewpoint == v])) == 1 for v in viewpoint)
    assert sorted(np.bincount(fold_of)) == [3, 4, 4]


def test_background_windows_hold_no_car(toycar):
    car = (253, 24, 387)
    windows = toycar.find_grounds(random.key(3), car)
    assert len(windows) == toycar.GROUNDS_PER_PHOTO
    for x, y, side in windows:
        assert 0 <= x <= toycar.PHOTO_PX - side
        assert 0 <= y <= toycar.PHOTO_PX - side
        assert x + side <= car[0] or x >= car[0] + car[2] or y + side <= car[1] or y >= car[1] + car[2]


def test_mirroring_moves_the_quads_with_the_scene(toycar):
    scene = torch.zeros(64, 3, 20, 30)
    scene[:, :, 4:8, 5:11] = 1.0
    quads = torch.tensor([[5.0, 4.0], [11.0, 4.0], [11.0, 8.0], [5.0, 8.0]]).expand(64, 1, 4, 2)
    moved = toycar.mirror(scene, quads, random.key(0))
    bounds = quad_bounds(moved["quads"])[:, 0].int().tolist()
    assert len({tuple(b) for b in bounds}) == 2
    for image, (x0, y0, x1, y1) in zip(moved["scene"], bounds, strict=True):
        assert image[:, y0:y1, x0:x1].min() == 1
        assert image.sum() == 3 * 4 * 6


def test_prints_are_flat_blocks_and_noise_in_color_and_gray(toycar):
    prints = toycar.make_prints(random.key(0), 64)
    levels = {len(p[0].unique()) for p in prints}
    assert min(levels) == 1
    assert 16 in levels
    assert max(levels) > 900
    is_gray = (prints == prints[:, :1]).flatten(1).all(1)
    assert 10 < int(is_gray.sum()) < 54


@needs_data
def test_a_quick_run_never_mixes_viewpoints_and_replays_bit_for_bit(toycar, tmp_path):
    settings = toycar.QUICK._replace(classifier_steps=8, patch_steps=3, mlflow=False)
    folder, (pooled,) = toycar.run_experiment(DATA, tmp_path, settings, silent)
    assert {"summary.json", "examples.png"} <= {p.name for p in folder.iterdir()}
    assert pooled.background.count == pooled.by_photograph.clean.photographs * toycar.GROUNDS_PER_PHOTO

    (run_folder,) = folder.glob("*-fold-1-scale-1")
    run, study = open_run(run_folder)
    dataset = study.data.open()
    ids = {split: set(dataset.split(split).image_ids.tolist()) for split in ("train", "test")}
    crops = toycar.cut_crops(DATA, tmp_path / "again", toycar.PANELS, random.key(0))
    assert ids["train"] | ids["test"] == set(range(len(crops.photos)))
    assert not {crops.viewpoint[i] for i in ids["train"]} & {crops.viewpoint[i] for i in ids["test"]}
    assert set(run.load_table("test")["image_id"]) == ids["test"]

    shown = run.load_conditions("test")
    assert all(tuple(values["patch"]) == toycar.PANELS for values in shown.values())  # a sum depends on it
    result, _ = replay_run(run_folder)
    assert len(result.rows) == settings.num_draws * len(ids["test"])
    assert not result.differences


@needs_data
@pytest.mark.slow
def test_real_detectors_see_the_toy_car(tmp_path):
    """Three of them, so that it ends soon."""
    for extra in ("ultralytics", "transformers"):
        pytest.importorskip(extra, exc_type=ImportError)
    script = ROOT / "experiments" / "detectors.py"
    words = ["--data", DATA, "--steps", "3", "--only", "ssdlite", "yolo11n", "faster_rcnn"]
    done = subprocess.run(
        [sys.executable, script, *map(str, words)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for victim in ("ssdlite", "yolo11n", "faster_rcnn"):
        (line,) = (line for line in done.stdout.splitlines() if victim in line)
        first, last = re.search(r"(\S+) -> (\S+)", line).groups()
        assert float(last) < float(first)
        assert "yes" in line
