"""The picture of the placements that doctor leaves."""

import sys
from pathlib import Path

import pytest
import torch

from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.doctor.placement_figure import _choose, draw_placements


def test_doctor_leaves_a_picture_with_the_aspect_of_every_place_and_patch(tmp_path, saved_figures, capsys):
    tiny_study(tmp_path, {})
    study = tmp_path / "study.toml"
    assert main(["doctor", str(study), "--log.runs", str(tmp_path / "runs")]) == 0
    path = tmp_path / "runs/lamp-placements.png"
    assert f"placements: {path}" in capsys.readouterr().out
    assert path.stat().st_size > 5000
    (figure,) = saved_figures
    assert "tag: patch 1.00; 2 places 1.00 to 1.00, median 1.00" in figure.get_suptitle()
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["0.png", "1.png"]
    for axis in figure.axes:
        assert {text.get_text() for text in axis.texts} == {"lamp", "tag 1.00"}


def test_the_extreme_places_are_among_the_images(tmp_path):
    sides = torch.tensor(
        [[10.0, 10], [10, 10], [40, 10], [10, 10], [5, 20], [60, 60], [2, 2], [10, 10], [9, 9]]
    )
    corners = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    quads = (corners * sides[:, None])[:, None]
    valid = torch.ones(9, 1, dtype=torch.bool)
    valid[0] = False
    aspects = torch.where(valid, sides[:, :1] / sides[:, 1:], torch.nan)
    chosen = _choose(valid, aspects, quads).tolist()
    assert set(chosen[:4]) == {2, 4, 5, 6}  # the widest, the narrowest, the largest, the smallest
    assert chosen[4:] == [1, 3]
    assert _choose(valid[:2], aspects[:2], quads[:2]).tolist() == [1]


def test_the_picture_goes_where_it_is_asked_for_and_its_lack_is_said(tmp_path, monkeypatch, capsys):
    tiny_study(tmp_path)
    study, runs = str(tmp_path / "study.toml"), str(tmp_path / "runs")
    asked = tmp_path / "deep/places.png"
    assert main(["doctor", study, "--log.runs", runs, "--picture", str(asked)]) == 0
    assert asked.is_file()
    assert not (tmp_path / "runs").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["doctor", study, "--log.runs", runs]) == 0
    assert "no picture of the placements: figures of boxes need matplotlib" in capsys.readouterr().out


def test_without_a_place_there_is_no_picture(tmp_path):
    scenes = tiny_study(tmp_path).data.open().split("train")
    scenes.tables["quad_valid"][:] = False
    assert not draw_placements(tmp_path / "none.png", scenes, {})
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--picture", "/proc/none/places.png"], "--picture: /proc/none cannot be written"),
        (["--picture", "places.jpg"], "--picture must name a file FILE.png, got 'places.jpg'; add .png"),
        (["--picture", "FOLDER.png"], "--picture must name a file FILE.png"),
        (["--log.runs", "/proc/none"], "log.runs: /proc/none cannot be written"),
    ],
)
def test_the_place_of_the_picture_is_checked_before_the_victim_is_asked(
    tmp_path, monkeypatch, capsys, words, said
):
    tiny_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("FOLDER.png").mkdir()
    monkeypatch.setattr("fpatch.doctor.examine.examine", lambda *_: pytest.fail("it worked first"))
    assert main(["doctor", str(tmp_path / "study.toml"), *words]) == 2
    assert said in capsys.readouterr().err
