"""The pages of the stage families: complete, as the code says, and drawn by the script."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from test_layout import STAGES

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gallery"]


@pytest.fixture(scope="module")
def stages(gallery):
    return gallery.make_stages()


def test_every_stage_has_its_place_and_picture(stages):
    assert set(stages) == set(STAGES)
    for identity in stages:
        assert (DOCS / "images" / "stages" / f"{identity.replace('.', '-')}.jpg").stat().st_size > 2000


def test_the_pages_say_what_the_code_says(gallery, stages):
    assert (DOCS / "gallery.md").read_text() == gallery.make_index(stages)
    for family in gallery.FAMILIES:
        names = [i.partition(".")[2] for i in stages if i.startswith(f"{family}.")]
        made = gallery.make_page(family, names, {i: stage for i, (stage, _) in stages.items()})
        assert (DOCS / f"{family}.md").read_text() == made, f"run `python docs/gallery.py` for {family}"


@pytest.mark.parametrize(
    "identity", ["create.scroll", "create.tanh", "implant.warp", "compose.hue", "losses.saliency"]
)
def test_a_picture_shows_what_its_stage_does(stages, identity):
    stage, draw = stages[identity]
    (panels,) = draw(stage)
    first, *others = [panel.image for panel in panels]
    assert len(others) >= 2
    assert all(image.shape == first.shape for image in others)
    assert all(bool((image != first).any()) for image in others)


def test_every_setting_has_a_row_of_its_own_whatever_follows(gallery, stages):
    doc = (
        "One.\n\nAttributes:\n    a: Of `b: c`.\n    d: Long,\n        goes on.\n\nReferences:\n    X (2000)."
    )
    assert gallery.parse_attributes(doc) == {"a": "Of `b: c`.", "d": "Long, goes on."}
    assert gallery.parse_section(doc, "References") == "X (2000)."
    for identity, (stage, _) in stages.items():
        page = "\n".join(gallery.make_section(*identity.split("."), stage))
        assert "`References`" not in page
        if "| setting | |" in page:
            rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
            assert rows == [f.name for f in dataclasses.fields(stage.definition.config)], identity


def test_what_a_stage_says_above_its_settings_is_on_the_page(gallery, stages):
    page = "\n".join(gallery.make_section("create", "stack", stages["create.stack"][0]))
    assert "patches that already have as many pass through." in page


def test_captions_say_what_can_be_seen(gallery):
    drawn = {"noise_key": torch.tensor([[5, 6]]), "placement": torch.tensor([-1])}
    assert gallery.caption(drawn, 0) == "draw 0"
    drawn = {"placement": torch.tensor([1]), "stops": torch.tensor([0.25])}
    assert gallery.caption(drawn, 0) == "placement 1, stops 0.25"
