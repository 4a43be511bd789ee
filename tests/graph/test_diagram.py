"""Diagrams hold every node, value and group, and the real Mermaid reads and draws them."""

import html
import importlib.util
import re
from pathlib import Path
from typing import Any

import mermaid
import pytest
import torch
from cases import classifier, demo, three_patches, tiny_generator, tiny_net, two_victims, two_views
from PIL import Image

from fpatch import compose, create, graph, implant, infer, losses, metrics, node, pipeline, viz
from fpatch.graph.diagram import role_of, weights_of

DOCS = Path(__file__).parents[2] / "docs"


def nested():
    """Groups in groups, every role, and a node that reads all values."""
    return pipeline(
        {
            "patches": {"pixels": create.pixels({"hood": (3, 8, 8)})},
            "implant": implant.warp(),
            "camera": {
                "light": {"exposure": compose.exposure(), "lens": {"blur": compose.blur()}},
                "noise": node(compose.read_noise(), phases="train"),
            },
            "victims": {"a": {"net": infer.classifier(classifier(seed=2))}},
            "wrong": losses.misclassify(),
            "hit": node(metrics.class_hit(), phases="eval"),
            "bars": node(viz.class_bars(), phases="eval"),
            "all": node(viz.drawing(draw_all, inputs=("*",)), writes=["all"], phases="night"),
        }
    )


def draw_all(**values: Any) -> torch.Tensor:
    return values["image"]


NASTY = pipeline(
    {
        'a"b<script>': compose.exposure(),
        "end": {"subgraph": {"graph;x": compose.blur(), "click": compose.contrast()}, "style": compose.hue()},
        "ünï—💥 `q` [x]{y}|z|": node(compose.gamma(), phases={"class end"}),
        "A & B % # ; -->": compose.invert(p=0.5),
        "default": node(compose.saturation(), writes=['o|x" --> end']),
    }
)


def lines_of(diagram: str, pattern: str) -> list[Any]:
    return re.findall(pattern, diagram, flags=re.M)


def test_groups_are_nested_as_the_paths_are():
    lines = nested().mermaid().partition("  subgraph legend")[0].splitlines()
    opened: list[str] = []
    found = {}
    for line in map(str.strip, lines):
        if line.startswith("subgraph"):
            opened.append(line.split('"')[1])
        elif line == "end":
            opened.pop()
        elif re.match(r"n\d+\W", line) and "-->" not in line:
            found["/".join([*opened, line.split('"')[1].partition("<br/>")[0]])] = line
    assert list(found) == list(nested())
    assert not opened
    deepest = next(line for line in lines if "compose.blur" in line)
    assert len(deepest) - len(deepest.lstrip()) == 8


@pytest.mark.parametrize("depth", [5, 3000])
def test_there_may_be_more_groups_than_nodes(depth):
    path = "/".join(["camera"] * depth)
    text = pipeline({path: compose.exposure()}).mermaid()
    assert text.count("subgraph g") == min(depth - 1, 20)
    assert 'exposure"]' in text


def test_an_arrow_carries_all_values_that_a_node_hands_to_another():
    drawn = demo().mermaid("train")
    ids = dict((name, i) for i, name in lines_of(drawn, r'^ *(n\d+)\W+"(\w+)<br/>'))
    arrows = {(a, b): names for a, names, b in lines_of(drawn, r'^  (n\d+) -->\|"(.*)"\| (n\d+)$')}
    assert len(arrows) == len(lines_of(drawn, r"-->\|"))
    assert arrows[ids["affine"], ids["implant"]] == "scene, quads, quad_valid"
    assert arrows[ids["pixels"], ids["implant"]] == "patch"
    assert arrows[ids["blur"], ids["victim"]] == "image"
    assert (ids["pixels"], ids["victim"]) not in arrows
    entering = {tuple(lines_of(drawn, rf"^  {i} --> (n\d+)$")): names for i, names in inputs_of(drawn)}
    assert entering[ids["affine"],] == "scene<br/>quads<br/>quad_valid<br/>boxes<br/>box_valid"
    assert entering[ids["implant"],] == "quad_patch"


def inputs_of(drawn: str) -> list[Any]:
    return lines_of(drawn, r'^  (in\d+)\(\["(.*)"\]\)$')


def outputs_of(drawn: str) -> dict[str, str]:
    """The writer of each output, by the name of the output's values."""
    outputs = dict(lines_of(drawn, r'^  (out\d+)>"(.*)"\]$'))
    return {outputs[made]: source for source, made in lines_of(drawn, r"^  (n\d+) --> (out\d+)$")}


def test_what_no_node_reads_leaves():
    assert set(outputs_of(demo().mermaid("train"))) == {"total_variation", "non_printability", "vanish"}
    inference = demo().without("total_variation", "non_printability", "vanish").mermaid("inference")
    assert set(outputs_of(inference)) == {"detections"}


def test_every_phase_has_its_diagram_and_all_together_name_phases():
    whole, night, evaluated = nested(), nested().mermaid("night"), nested().mermaid("test")
    assert "viz.drawing" in night
    assert "all values so far" in night
    assert "metrics.class_hit" not in night
    assert "metrics.class_hit" in evaluated
    assert "only" not in night + evaluated
    assert "metrics.class_hit<br/>only test, validation" in whole.mermaid()
    assert "compose.read_noise<br/>only train" in whole.mermaid()


@pytest.mark.parametrize(
    ("path", "role", "shape"),
    [
        ("patches/pixels", "parameterization", r'{{"pixels'),
        ("implant", "stage", r'["implant'),
        ("victims/a/net", "victim", r'[["net'),
        ("wrong", "loss", '[\\"wrong'),
        ("hit", "metric", r'[("hit'),
        ("bars", "drawing", r'[/"bars'),
    ],
)
def test_a_shape_is_a_role_and_stands_in_the_legend(path, role, shape):
    assert role_of(nested()[path]) == role
    assert shape in nested().mermaid()
    legend = nested().mermaid().partition("subgraph legend")[2]
    assert f"legend_{role}{shape.partition(chr(34))[0]}" in legend


def test_the_legend_lists_only_what_occurs():
    legend = pipeline({"dim": compose.exposure()}).mermaid().partition("subgraph legend")[2]
    assert lines_of(legend, r"^    legend_(\w+)") == ["stage", "input", "output"]
    assert "classDef" not in legend


def test_trained_and_frozen_weights_are_told_apart():
    found = {path: weights_of(n) for path, n in nested().items()}
    assert found.pop("patches/pixels") == "trained"
    assert found.pop("victims/a/net") == "frozen"
    assert set(found.values()) == {None}
    assert weights_of(node(create.generator(tiny_generator(seed=4), {"hood": (4, 1, 1)}))) == "trained"
    drawn = nested().mermaid()
    assert "class n0,legend_trained trained" in drawn
    assert "class n5,legend_frozen frozen" in drawn


@pytest.mark.parametrize("trainable", [False, True])
def test_a_network_is_trained_or_frozen_as_its_node_says(trainable):
    network = graph.module(tiny_net(seed=3), trainable=trainable)
    n = node(network, reads=["image"], writes=["logits"])
    assert weights_of(n) == ("trained" if trainable else "frozen")


def test_one_network_in_two_places_is_trained_in_both():
    assert [weights_of(n) for n in two_views().values()] == ["trained", "trained"]


def test_the_picture_in_the_docs_is_that_of_its_page():
    spec = importlib.util.spec_from_file_location("diagram", DOCS / "diagram.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with Image.open(script.PICTURE) as picture:
        assert picture.info["mermaid"] == script.make_diagram(), "run docs/diagram.py"
        assert min(picture.size) > 400


# -- the real Mermaid


DRAWN = {
    "nested": nested(),
    "nasty": NASTY,
    "demo": demo(),
    "two victims": two_victims(),
    "three patches": three_patches(),
    "two views": two_views(),
    "one": pipeline({"end": compose.exposure()}),
}


@pytest.fixture(scope="module")
def parsed():
    """All that Mermaid finds in the diagrams, and in one that is broken."""
    if mermaid.MISSING:
        pytest.skip(mermaid.MISSING)
    diagrams = {name: p.mermaid() for name, p in DRAWN.items()}
    diagrams |= {f"demo, {phase}": demo().mermaid(phase) for phase in ("train", "test", "inference")}
    diagrams["broken"] = diagrams["demo"].replace('"camera"', '"cam"era"')
    return dict(zip(diagrams, mermaid.parse(list(diagrams.values())), strict=True))


def test_mermaid_refuses_a_broken_diagram(parsed):
    """The other tests could not fail if errors went unseen."""
    assert "Parse error" in parsed["broken"]["error"]
    assert not [name for name, found in parsed.items() if "error" in found and name != "broken"]


@pytest.mark.parametrize("name", DRAWN)
def test_mermaid_finds_every_node_with_its_name_stage_and_group(parsed, name):
    found, p = parsed[name], DRAWN[name]
    nodes = {n["id"]: n for n in found["nodes"] if not n["id"].startswith("legend_")}
    texts = [plain(nodes[f"n{i}"]["text"]) for i in range(len(p))]
    for (path, n), text in zip(p.items(), texts, strict=True):
        assert text.split("<br>")[:2] == [path.rpartition("/")[2], n.stage.definition.name]
    groups = {g["id"]: g for g in found["groups"] if g["id"] != "legend"}
    parents = {path.rpartition("/")[0] for path in p} - {""}
    every = {"/".join(group.split("/")[: i + 1]) for group in parents for i in range(group.count("/") + 1)}
    assert {path_of(groups, made) for made in groups} == every
    for i, path in enumerate(p):
        assert path_of(groups, f"n{i}").rpartition("/")[0] == path.rpartition("/")[0]
    assert len(found["drawn"]) == len(found["nodes"])


def plain(text: str) -> str:
    """A label with its codes, as Mermaid keeps them while it draws, as letters."""
    return html.unescape(re.sub(r"ﬂ°°(\d+)¶ß|#(\d+);", lambda m: f"&#{m[1] or m[2]};", text))


def path_of(groups: dict[str, Any], made: str) -> str:
    """The names of the groups around a node or a group, and its own if it is a group."""
    own = plain(groups[made]["text"]) if made in groups else made
    around = next((g for g in groups.values() if made in g["inside"]), None)
    return own if around is None else f"{path_of(groups, around['id'])}/{own}"


def test_mermaid_finds_the_shapes_arrows_and_styles(parsed):
    found = parsed["nested"]
    shapes = {n["id"]: n["shape"] for n in found["nodes"]}
    assert len({shapes[f"legend_{role}"] for role in ("stage", "parameterization", "victim", "loss")}) == 4
    assert len({shapes[f"legend_{role}"] for role in ("metric", "drawing", "input", "output")}) == 4
    for i, n in enumerate(nested().values()):
        assert shapes[f"n{i}"] == shapes[f"legend_{role_of(n)}"]
    styles = {n["id"]: n["styles"] for n in found["nodes"] if n["styles"]}
    assert styles == {
        **{"n0": ["trained"], "legend_trained": ["trained"]},
        **{"n5": ["frozen"], "legend_frozen": ["frozen"]},
    }
    texts = [plain(arrow["text"]) for arrow in parsed["demo, train"]["arrows"]]
    assert "scene, quads, quad_valid" in texts
    arrows = [plain(arrow["text"]) for arrow in parsed["nasty"]["arrows"]]
    assert arrows.count("image") == 6
