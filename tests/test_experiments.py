"""The experiments on the scenes of the demo, in their quick form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name: str, runs: Path) -> tuple[str, Path]:
    """What an experiment prints, and its folder."""
    command = [sys.executable, str(ROOT / "experiments" / name), "--quick", "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = runs.iterdir()
    return done.stdout, folder


@pytest.mark.slow
def test_transfer_measures_every_patch_on_every_victim(tmp_path: Path):
    _, folder = run("transfer.py", tmp_path)
    found = json.loads((folder / "transfer.json").read_text())
    assert set(found) == {"victim0", "victim1", "victim2"}
    for victim in found.values():
        assert {"victim0", "victim1", "victim2", "victim0+victim1", "noise"} <= set(victim["rates"])
        assert victim["rates"]["noise"]["value"] < 0.2
    assert (folder / "transfer.png").stat().st_size > 10_000


@pytest.mark.slow
def test_defenses_are_measured_with_the_patches_that_were_trained_through_them(tmp_path: Path):
    said, folder = run("defenses.py", tmp_path)
    found = json.loads((folder / "matrix.json").read_text())
    assert set(found) == {"none", "bits"}
    assert found["bits"]["adaptive"] == ["bits"]
    assert set(found["bits"]["attacks"]) == {"plain", "bits"}
    assert found["none"]["attacks"]["plain"]["rates"]["noise"]["value"] < 0.2
    assert "adaptive %" in said


@pytest.mark.slow
def test_the_sweep_of_the_demo_is_compared_with_its_defaults(tmp_path: Path):
    pytest.importorskip("ray", reason="needs the extra sweep")
    said, folder = run("tune_demo.py", tmp_path)
    found = json.loads((folder / "tune.json").read_text())
    assert "best - defaults over 2 pairs of patches" in said
    assert set(found["settings"]) >= {"optimizer.learning_rate", "pipeline.vanish.on"}
    low, middle, high = (found["all, over pairs"][i] for i in (1, 0, 2))
    assert low <= middle <= high
    assert found["all"]["over"]["defaults"]["value"] == pytest.approx(
        sum(found[f"victim {i}, seed 1"]["over"]["defaults"]["value"] for i in (0, 1)) / 2, abs=0.02
    )
    again = [sys.executable, str(ROOT / "experiments" / "tune_demo.py"), "--help"]
    assert "--sweep" in subprocess.run(again, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_one_recipe_is_used_for_everything(tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    said, folder = run("recipe.py", tmp_path)
    found = json.loads((folder / "recipe.json").read_text())
    assert found["right"] > 0.8
    assert found["onnx"] < 1e-4
    assert {path.name for path in (folder / "weights").iterdir()} == {
        "body.safetensors", "digit.safetensors", "ink.safetensors",
    }  # fmt: skip
    assert "digits right" in said
    assert (folder / "answers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_victim_is_hardened_and_attacked_from_scratch(tmp_path: Path):
    command = [sys.executable, str(ROOT / "experiments/harden.py"), "--quick", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*-harden")
    found = json.loads((folder / "harden.json").read_text())["victims"]
    assert set(found) == {"start", "continued", "hardened"}
    assert len(found["hardened"]["robust"]) == 8
    assert 0 <= found["hardened"]["summaries"]["precision/map"] <= 1
    assert (folder / "harden.png").stat().st_size > 10_000
    assert "from scratch, loss 2, key 2" in done.stdout
    more = subprocess.run([*command, "--beyond", str(folder)], capture_output=True, text=True, timeout=900)
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("not found") == 3
