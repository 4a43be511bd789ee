"""The shares of the image and of the object that each patch covers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fpatch import compose, create, evaluate, implant, infer, metrics, node, pipeline, random, replay
from fpatch.core.types import Range
from fpatch.data import targets, write_image
from fpatch.demo.tiny import Brightness


@pytest.fixture
def scenes(tmp_path):
    """Two scenes of 40 x 60 px, one object of 20 x 40 px, and places of 10 x 20 px for two patches."""
    placements, objects = ["image,patch,split,xmin,ymin,xmax,ymax"], ["image,label,split,xmin,ymin,xmax,ymax"]
    for i in range(2):
        write_image(tmp_path / f"{i}.png", torch.full((3, 40, 60), 0.25 * i))
        placements += [
            f"{i}.png,inner,test,10,10,30,20",
            f"{i}.png,outer,test,40,{10 + 5 * i},60,{20 + 5 * i}",
        ]
        objects += [f"{i}.png,lamp,test,10,10,50,30", f"{i}.png,lamp,test,0,34,6,40"]
    (tmp_path / "placements.csv").write_text("\n".join(placements), "utf-8")
    (tmp_path / "objects.csv").write_text("\n".join(objects), "utf-8")
    return targets(tmp_path / "placements.csv", tmp_path / "objects.csv", size=(40, 60))


def make_pipeline(implanter):
    return pipeline(
        {
            "pixels": create.pixels({"inner": (3, 4, 8), "outer": (3, 4, 8)}),
            "implant": implanter,
            "victim": infer.classifier(Brightness().eval()),
            "hit": metrics.class_hit(),
        }
    )


def measure(scenes, implanter, edit=None):
    made = make_pipeline(implanter)
    return made, evaluate(made, made.init(random.key(0)), scenes, random.key(1), edit=edit)


def test_shares_are_those_of_the_places(scenes):
    _, result = measure(scenes, implant.fill_box())
    table, place = result.table, 10 * 20
    assert table["covered_image_inner"] == pytest.approx([place / 2400] * 2)
    assert table["covered_image_outer"] == pytest.approx([place / 2400] * 2)
    assert table["covered_object_inner"] == pytest.approx([place / 800] * 2)
    assert table["covered_object_outer"] == pytest.approx([10 * 10 / 800] * 2)


def test_size_and_opacity_count_and_brightness_does_not(scenes):
    _, small = measure(scenes, implant.warp(scale=Range(0.4, 0.4), match_brightness=True))
    assert small.table["covered_image_inner"] == pytest.approx([8 * 4 / 2400] * 2, rel=1e-4)

    def fade(sample):
        opacity = torch.tensor([[0.5, 1.0], [0.0, 1.0]])
        return {**sample, "implant": {**sample["implant"], "opacity": opacity}}

    _, faded = measure(scenes, implant.fill_box(), fade)
    assert faded.table["covered_image_inner"] == pytest.approx([100 / 2400, 0.0])
    assert faded.table["covered_image_outer"] == pytest.approx([200 / 2400] * 2)


@pytest.mark.parametrize("between", ["nothing", "exposure", "flip"])
def test_a_later_implanter_draws_over_an_earlier_one(scenes, between):
    """A pixel that shows a patch twice counts once, where it is the same pixel."""
    moves = {
        "nothing": {},
        "exposure": {"dim": compose.exposure((-1.0, -1.0))},
        "flip": {
            "flip": node(compose.vertical_flip(p=1.0), reads={"scene": "image"}, writes={"scene": "image"})
        },
    }
    made = make_pipeline(implant.fill_box())
    body = {path: made[path] for path in ("victim", "hit")}
    again = node(implant.warp(scale=Range(0.5, 0.5)), reads={"scene": "image"})
    made = pipeline({**made.upto("implant"), **moves[between], "again": again, **body})
    table = evaluate(made, made.init(random.key(0)), scenes, random.key(1)).table
    whole, part = 10 * 20 / 2400, 5 * 10 / 2400
    twice = whole + part if between == "flip" else whole  # the sum, after a move
    assert table["covered_image_inner"] == pytest.approx([twice] * 2, rel=0.05)
    assert (table["covered_image_inner"] == pytest.approx([whole] * 2)) == (between != "flip")


def test_a_patch_on_top_of_that_of_an_earlier_implanter_hides_it(scenes):
    made = make_pipeline(implant.fill_box())
    body = {path: made[path] for path in ("victim", "hit")}
    again = node(implant.fill_box(), reads={"scene": "image", "quad_patch": "other"})
    made = pipeline({**made.upto("implant"), "again": again, **body})

    class Swapped(type(scenes)):
        def batch(self, *given, **more):
            batch = super().batch(*given, **more)
            return batch | {"other": 1 - batch["quad_patch"]}

    swapped = Swapped(**vars(scenes))
    table = evaluate(made, made.init(random.key(0)), swapped, random.key(1)).table
    assert table["covered_object_inner"] == pytest.approx([10 * 10 / 800] * 2)
    assert table["covered_object_outer"] == pytest.approx([10 * 20 / 800] * 2)


def test_shares_replay_and_older_tables_lack_them(scenes):
    made, result = measure(scenes, implant.fill_box())
    again = replay(made, result.conditions, scenes, result.table)
    assert again.differences == {}
    assert again.columns["covered_object_outer"].dtype == np.float32
    changed = result.table | {"covered_object_outer": result.table["covered_object_outer"] * np.float32(2)}
    assert list(replay(made, result.conditions, scenes, changed).differences) == [0, 1]
    older = {name: column for name, column in result.table.items() if not name.startswith("covered_")}
    assert replay(made, result.conditions, scenes, older).differences == {}


def test_stages_before_the_implant_move_boxes_only_where_there_are_some(scenes):
    """Shares of the image are there without boxes too."""
    made = make_pipeline(implant.fill_box())
    flipped = {"pixels": made["pixels"], "flip": compose.horizontal_flip(1.0), "implant": made["implant"]}
    moved = pipeline(flipped)
    params = moved.init(random.key(0))
    shares = evaluate(moved, params, scenes, random.key(1)).table
    assert shares["covered_object_inner"] == pytest.approx([10 * 20 / 800] * 2)
    plain = targets(Path(scenes.paths[0]).parent / "placements.csv", size=(40, 60))
    shares = evaluate(moved, params, plain, random.key(1)).table
    assert shares["covered_image_inner"] == pytest.approx([10 * 20 / 2400] * 2)
    assert [name for name in shares if name.startswith("covered_object_")] == []


def test_a_value_that_an_optional_write_leaves_out_is_not_suggested(scenes):
    moved = pipeline({"flip": compose.horizontal_flip(1.0)})
    batch = {"scene": torch.rand(1, 3, 4, 4), "quads": torch.rand(1, 1, 4, 2)}
    with pytest.raises(ValueError, match=r"no value 'boxes'; known: quads, scene"):
        moved.apply({}, {"flip": {"on": torch.tensor([True])}}, batch, want=["boxes"])
