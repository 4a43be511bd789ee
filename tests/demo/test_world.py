"""The demo's world: the renderer, the target set it writes and the detector it trains."""

import csv
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpatch.demo.victim import TinyDetector, load_victim, save_victim
from fpatch.demo.world import scenes as scenes_module
from fpatch.demo.world.render import LABEL, PANELS, render, scene_rng
from fpatch.demo.world.scenes import cached_scenes, digest, render_textured, write_scenes
from fpatch.ops.geometry import quad_area

SIZE_HW = (112, 144)
SPLITS = {"train": 3, "test": 4}
NUM_SCENES = 24


def photograph(index: int, textures=None, size_hw=SIZE_HW):
    return render(scene_rng(7, index), size_hw, textures)


def plain(color: tuple[float, float, float]) -> dict[str, np.ndarray]:
    return {name: np.full((8, 8, 3), color) for name in PANELS}


def area(quad: np.ndarray) -> float:
    return float(quad_area(torch.from_numpy(quad)))


def inside(quad: np.ndarray, size_hw: tuple[int, int], grow: float = 0.0) -> np.ndarray:
    """Which pixels have their center in a clockwise quad, grown by so many pixels."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    within = np.ones(size_hw, dtype=bool)
    for (ax, ay), (bx, by) in zip(quad, np.roll(quad, -1, 0), strict=True):
        depth = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / np.hypot(bx - ax, by - ay)
        within &= depth > -grow
    return within


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The renderer


def test_a_scene_depends_on_its_pair_of_seeds_only():
    first, again = photograph(3), photograph(3)
    assert first.image.dtype == np.uint8
    assert first.image.shape == (*SIZE_HW, 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.box, again.box)
    assert first.panels.keys() == again.panels.keys()
    assert (photograph(4).image != first.image).any()
    assert (render(scene_rng(8, 3), SIZE_HW).image != first.image).any()


@pytest.mark.parametrize("size_hw", [(48, 48), (128, 128), (144, 112)])
def test_the_box_holds_the_panels_and_lies_in_the_picture(size_hw: tuple[int, int]):
    seen = set()
    for index in range(NUM_SCENES):
        scene = photograph(index, size_hw=size_hw)
        x0, y0, x1, y1 = scene.box
        assert 0 <= x0 < x1 <= size_hw[1]
        assert 0 <= y0 < y1 <= size_hw[0]
        assert scene.panels
        assert scene.label == LABEL
        seen |= scene.panels.keys()
        for quad in scene.panels.values():
            assert (quad >= scene.box[:2]).all()
            assert (quad <= scene.box[2:]).all()
    assert seen == set(PANELS)


def test_the_median_scene_has_35_to_45_percent_of_its_box_covered_by_panels():
    shares = []
    for index in range(4 * NUM_SCENES):
        scene = photograph(index)
        covered = sum(map(area, scene.panels.values()))
        shares.append(covered / np.prod(scene.box[2:] - scene.box[:2]))
    assert 0.35 <= np.median(shares) <= 0.45


def test_a_texture_changes_its_panel_and_nothing_else():
    shown = []
    for index in range(NUM_SCENES):
        own, red, blue = (
            photograph(index),
            photograph(index, plain((1, 0, 0))),
            photograph(index, plain((0, 0, 1))),
        )
        np.testing.assert_array_equal(own.box, red.box)
        near, core = np.zeros(SIZE_HW, dtype=bool), np.zeros(SIZE_HW, dtype=bool)
        for name, quad in own.panels.items():
            np.testing.assert_array_equal(quad, red.panels[name])
            near |= inside(quad, SIZE_HW, grow=3.0)
            core |= inside(quad, SIZE_HW, grow=-2.0)
        for other in (red, blue):
            assert not ((own.image != other.image).any(-1) & ~near).any()
        shown.append(np.mean((red.image[..., 0].astype(int) - blue.image[..., 0])[core] > 20))
    assert min(shown) > 0.5  # the rest hides behind poles
    assert np.median(shown) > 0.99


def test_the_side_texture_stays_off_the_rear():
    red = {"side": plain((1, 0, 0))["side"]}
    scene = next(scene for scene in map(photograph, range(NUM_SCENES)) if scene.panels.keys() == {"rear"})
    index = next(i for i in range(NUM_SCENES) if photograph(i).panels.keys() == {"rear"})
    np.testing.assert_array_equal(photograph(index, red).image, scene.image)


def test_corners_of_a_texture_appear_at_the_corners_of_the_quad():
    """Only the marked corner of the print differs between two photographs: where is its center of mass?"""
    tried = 0
    for index in range(NUM_SCENES):
        blank = photograph(index, plain((0, 0, 0)))
        for name, quad in blank.panels.items():
            if area(quad) < 600:
                continue
            for corner, (row, column) in enumerate([(0, 0), (0, -1), (-1, -1), (-1, 0)]):
                marked = plain((0, 0, 0))
                marked[name][row, column] = 1
                weight = (photograph(index, marked).image.astype(float) - blank.image).clip(0).sum(-1)
                if weight.sum() < 500:  # a pole stands there
                    continue
                y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]] + 0.5
                found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
                assert np.linalg.norm(quad - found, axis=1).argmin() == corner
                assert np.linalg.norm(quad[corner] - found) < 0.2 * np.sqrt(area(quad))
                tried += 1
    assert tried > 40


def test_uint8_and_float_textures_agree():
    levels = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)
    as_float = photograph(1, {"side": levels / 255, "rear": levels / 255})
    np.testing.assert_array_equal(photograph(1, {"side": levels, "rear": levels}).image, as_float.image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"textures": {"roof": np.zeros((4, 4, 3))}}, "'roof'"),
        ({"textures": {"side": np.zeros((3, 4, 4))}}, r"\[h, w, 3\]"),
        ({"textures": {"side": np.full((4, 4, 3), 1.5)}}, r"0\.\.1"),
        ({"textures": {"side": np.full((4, 4, 3), np.nan)}}, r"0\.\.1"),
        ({"size_hw": (128, 40)}, "48 pixels"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        photograph(0, **arguments)


# The target set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set", 5, SPLITS, workers=1)


def test_tables_say_what_was_rendered(folder: Path):
    placements, objects = rows(folder / "placements.csv"), rows(folder / "objects.csv")
    assert list(placements[0]) == list(scenes_module.PLACEMENT_COLUMNS)
    assert list(objects[0]) == list(scenes_module.OBJECT_COLUMNS)
    assert [row["image"] for row in objects] == [
        f"images/{split}-{i + 1:05}.png" for split, count in SPLITS.items() for i in range(count)
    ]
    for number, row in enumerate(objects):
        index = number if row["split"] == "train" else number - SPLITS["train"]
        rng = scene_rng(5, zlib.crc32(row["split"].encode()) << 32 | index)
        scene = render(rng, scenes_module.SIZES_HW[index % 3])
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["image"])), scene.image)
        assert [float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")] == scene.box.tolist()
        mine = {place["patch"]: place for place in placements if place["image"] == row["image"]}
        assert mine.keys() == scene.panels.keys()
        for name, place in mine.items():
            corners = [[float(place[f"{at}x"]), float(place[f"{at}y"])] for at in ("ul", "ur", "lr", "ll")]
            np.testing.assert_allclose(corners, scene.panels[name], atol=1e-3)
            assert place["split"] == row["split"]


def test_two_workers_write_the_same(folder: Path, tmp_path: Path):
    done = []
    other = write_scenes(tmp_path / "set", 5, SPLITS, workers=2, progress=lambda *counts: done.append(counts))
    assert done == [(i + 1, 7) for i in range(7)]
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((folder / path).read_bytes() == (other / path).read_bytes() for path in files)


def test_textured_scenes_differ_in_the_panels_only(folder: Path, tmp_path: Path):
    textured = render_textured(folder, tmp_path / "textured", "test", plain((1, 0, 0)), workers=1)
    for table in ("objects.csv", "placements.csv"):
        assert rows(textured / table) == [row for row in rows(folder / table) if row["split"] == "test"]
    for row in rows(textured / "objects.csv"):
        before, after = (
            np.asarray(Image.open(root / row["image"])).astype(int) for root in (folder, textured)
        )
        changed = np.argwhere((before != after).any(-1)) + 0.5
        assert len(changed) > 50
        assert changed[:, 1].min() > float(row["xmin"]) - 2
        assert changed[:, 1].max() < float(row["xmax"]) + 2
    with pytest.raises(ValueError, match="train, test"):
        render_textured(folder, tmp_path / "other", "validation", {})
    with pytest.raises(FileNotFoundError, match=r"scenes\.json"):
        render_textured(tmp_path, tmp_path / "other", "test", {})


def test_a_cached_set_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = cached_scenes(tmp_path, 1, {"train": 1}, workers=1)
    assert cached_scenes(tmp_path, 2, {"train": 1}, workers=1) != first
    monkeypatch.setattr(scenes_module, "render", lambda *_: pytest.fail("rendered again"))
    assert cached_scenes(tmp_path, 1, {"train": 1}, workers=1) == first
    assert json.loads((first / "scenes.json").read_text())["seed"] == 1
    assert digest([], a=1) != digest([], a=2) != digest([scenes_module], a=2)


def test_an_interrupted_set_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_scenes(tmp_path, 1, {"train": 3}, workers=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(folder: Path):
    with pytest.raises(FileExistsError, match="set"):
        write_scenes(folder, 5, SPLITS, workers=1)


# The detector


def test_the_detector_is_dense_and_its_rows_are_independent():
    model = TinyDetector(num_classes=2, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    dense = model(images)
    assert dense["boxes"].shape == (3, 6 * 8, 4)
    assert dense["logits"].shape == (3, 6 * 8, 2)
    for name, values in model(torch.stack([images[1], images[0], 1 - images[2]])).items():
        torch.testing.assert_close(values[:2], dense[name][[1, 0]], rtol=0, atol=0)
        assert (values[2] != dense[name][2]).any()
    torch.nn.init.zeros_(model.head.weight)
    around_its_center = [20.0 - 16, 12.0 - 16, 20.0 + 16, 12.0 + 16]
    assert model(images)["boxes"][0, 8 + 2].tolist() == around_its_center
    with pytest.raises(ValueError, match="multiples of 8"):
        model(torch.rand(1, 3, 50, 64))


def test_every_output_is_differentiable_in_the_images():
    model = TinyDetector(generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for values in model(images).values():
        (gradient,) = torch.autograd.grad(values.square().sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_weights_survive_the_disk(tmp_path: Path):
    model = TinyDetector(generator=torch.Generator().manual_seed(2)).to(memory_format=torch.channels_last)
    save_victim(tmp_path / "victim.safetensors", model)
    loaded = load_victim(tmp_path / "victim.safetensors")
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    for name, values in model(images).items():
        assert torch.equal(values, loaded(images)[name])
    assert not any(weights.requires_grad for weights in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["victim.safetensors"]
