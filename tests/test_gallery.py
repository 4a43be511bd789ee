"""The pages and pictures of the stages: complete, as the code says, and drawn by the script."""

import dataclasses
import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from test_layout import STAGES

import fpatch

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


@pytest.fixture(scope="module")
def extension():
    """The modules by which Sphinx writes the reference."""
    sys.path.insert(0, str(DOCS / "_ext"))
    names = ("markdown_text", "docstrings", "reference")
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(DOCS / "_ext"))
    for name in names:
        del sys.modules[name]
    sys.modules.update(hidden)


@pytest.fixture(scope="module")
def pages(extension):
    """The text of every page that the code writes."""
    return {str(path.relative_to(DOCS)): text for path, text in extension["reference"].make_pages().items()}


def test_every_stage_has_its_place_and_picture(stages):
    assert set(stages) == set(STAGES)
    for identity in stages:
        assert (DOCS / "images" / "stages" / f"{identity.replace('.', '-')}.jpg").stat().st_size > 2000


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


def test_captions_say_what_can_be_seen(gallery):
    drawn = {"noise_key": torch.tensor([[5, 6]]), "placement": torch.tensor([-1])}
    assert gallery.caption(drawn, 0) == "draw 0"
    drawn = {"placement": torch.tensor([1]), "stops": torch.tensor([0.25])}
    assert gallery.caption(drawn, 0) == "placement 1, stops 0.25"


def test_a_docstring_is_told_apart_by_its_sections(extension):
    doc = (
        "One.\n\nAttributes:\n    a: Of `b: c`.\n    d: Long,\n        goes on.\n\nReferences:\n    X (2000)."
    )
    markdown_text = extension["markdown_text"]
    assert markdown_text.parse_attributes(doc) == {"a": "Of `b: c`.", "d": "Long, goes on."}
    assert markdown_text.parse_section(doc, "References") == "X (2000)."
    assert markdown_text.render_summary(doc) == "One."
    assert list(markdown_text.render_sections(doc)) == ["*X (2000).*", ""]
    convention = "One.\n\nConvention:\n    x to the right, a * b.\n\nExamples:\n    >>> 1 + 1\n    2"
    shown = [":::{admonition} Convention", "x to the right, a \\* b.", ":::", ""]
    assert list(markdown_text.render_sections(convention)) == shown
    assert list(markdown_text.render_examples(convention)) == ["```pycon\n>>> 1 + 1\n2\n```", ""]


def test_docstrings_in_sphinx_keep_every_character(extension):
    convert = extension["docstrings"].convert
    lines = ["An *edge* of `a | b`s, x_ | y.", "", "    code(*args)", "", "Args:", "    a: Of `[b, *c]`."]
    assert convert(lines) == [
        *("An \\*edge\\* of ``a | b``\\ s, x\\_ \\| y.", ""),
        *(".. code-block:: python", "", "    code(*args)", ""),
        *("Args:", "    a: Of ``[b, *c]``.", ""),
    ]
    example = ["Example:", "    >>> 2 * 3", "    6"]
    assert convert(example) == [*example, ""]


@pytest.mark.parametrize("identity", sorted(STAGES))
def test_the_page_of_a_stage_says_what_its_code_says(pages, identity):
    page, definition = pages[f"reference/stages/{identity}.md"], STAGES[identity]
    settings = dataclasses.fields(definition.config)
    rows = re.findall(r"^\| `(\w+)` \| `.*?` \| (`.*?`|\*needed\*) \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == [f.name for f in settings]
    assert all(meaning for _, _, meaning in rows), "every setting has a line among its Attributes"
    reads = page.partition("| reads |")[2].partition("\n")[0]
    assert all(f"`{name}`" in reads for name in (*definition.reads, *definition.optional))
    samples = page.partition("| samples |")[2].partition("\n")[0]
    assert all(f"`{name}`" in samples for name in definition.fields)
    about = importlib.import_module(definition.module).__doc__ or ""
    assert about.split(".")[0].split("\n")[0][:40].replace("<", "\\<") in page
    assert f"literalinclude}} /../{definition.module.replace('.', '/')}.py" in page


def test_what_a_stage_cannot_do_is_on_its_page(pages):
    proof = pages["reference/stages/create.soft_proof.md"]
    assert "| cannot | run under `torch.func.vmap`, pass a gradient" in proof
    assert "| cannot | - |" in pages["reference/stages/compose.exposure.md"]
    assert "| marks | `pixelwise` |" in pages["reference/stages/compose.exposure.md"]
    assert (
        "patches that already have this number pass unchanged." in pages["reference/stages/create.stack.md"]
    )


def test_the_section_of_a_stage_is_that_of_its_defaults(pages):
    made = 0
    for identity, definition in STAGES.items():
        page = pages[f"reference/stages/{identity}.md"]
        block = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
        if "\n# " not in block:
            (node,) = fpatch.build(tomllib.loads(block)["pipeline"]).values()
            assert node.stage.config == definition().config, identity
            made += 1
    assert made > 40


def test_the_reference_has_every_command_setting_and_wing(pages):
    commands = re.findall(r"^## fpatch (\w+)", pages["reference/commands.md"], re.MULTILINE)
    (listed,) = re.findall(r"  COMMAND\n(.*?)\n\n", pages["reference/commands.md"], re.DOTALL)
    assert set(re.findall(r"^    (\w+)", listed, re.MULTILINE)) == set(commands)
    for setting in ("num_steps", "outside_frac", "learning_rate", "micro_batch_on_oom", "seed"):
        assert f"| `{setting}` |" in pages["reference/settings.md"]
    for wing in ("data", "random", "analysis", "tune"):
        assert f"reference/api/fpatch.{wing}.rst" in pages
