"""ONNX of a phase: names, any number of rows, and what cannot be exported."""

import pytest
import torch
from torch import nn
from typecheck import unchecked

import fpatch
from fpatch import compose, create, graph, implant, infer, losses, node, random
from fpatch.demo.victim import TinyDetector

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
KEY = random.key(4)


def run_file(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def images(rows: int) -> torch.Tensor:
    return random.uniform(random.key(rows), (rows, 3, 32, 40))


def two_heads() -> fpatch.Pipeline:
    """A network with batch statistics and dropout, and two heads; one loss is alive in training alone."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    parts = {
        "body": node(graph.module(body, trainable=True), reads=["image"], writes=["features"]),
        "heads": {
            "kind": node(graph.module(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 5)), trainable=True),
                         reads=["features"], writes=["kind"]),
            "color": node(graph.module(nn.Linear(8, 3).eval()), reads=["features"], writes=["color"]),
        },
        "loss": node(losses.misclassify(), reads={"logits": "kind", "target": "target"}, phases="train"),
    }  # fmt: skip
    return fpatch.pipeline(parts)


def test_a_file_has_the_names_and_takes_any_number_of_rows(tmp_path):
    p = two_heads()
    params = {n: v + 0.1 if v.is_floating_point() else v for n, v in p.init(KEY).items()}
    with unchecked():
        names = graph.export_onnx(p.at("export"), tmp_path / "a.onnx", params, {"image": images(3)})
    assert names == (("image",), ("kind", "color"))
    for rows in 1, 7:
        expected = p.at("export").apply(params, {}, {"image": images(rows)})
        found = run_file(tmp_path / "a.onnx", image=images(rows))
        for name in ("kind", "color"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


def test_entries_of_a_detector_are_outputs(tmp_path):
    model = TinyDetector(num_classes=2, width=16, generator=torch.Generator().manual_seed(0)).eval()
    p = fpatch.pipeline({"victim": infer.detector(model)}).at("export")
    with unchecked():
        _, outputs = graph.export_onnx(p, tmp_path / "a.onnx", {}, {"image": images(2)})
    assert set(outputs) == {"detections/dense/boxes", "detections/dense/logits"}
    for rows in 1, 5:
        dense = p.apply({}, {}, {"image": images(rows)})["detections"]["dense"]
        found = run_file(tmp_path / "a.onnx", image=images(rows))
        for name, value in dense.items():
            torch.testing.assert_close(found[f"detections/dense/{name}"], value, rtol=0, atol=1e-3)


class Overlay(nn.Module):
    """A patch in a corner, by a rule that a graph can hold."""

    def forward(self, image: torch.Tensor, patch: dict) -> torch.Tensor:
        a = patch["a"]
        padded = nn.functional.pad(a, (0, image.shape[-1] - a.shape[-1], 0, image.shape[-2] - a.shape[-2]))
        return (image + padded).clamp(0, 1).mean((-1, -2))


@pytest.mark.parametrize("patch_inputs", [False, True])
def test_the_patch_is_a_constant_or_an_input(tmp_path, patch_inputs):
    overlay = node(graph.module(Overlay().eval()), reads=["image", "patch"], writes=["means"])
    p = fpatch.pipeline({"pixels": create.pixels({"a": (3, 8, 8)}), "overlay": overlay}).at("export")
    params, others = p.init(KEY), {"a": p.init(random.key(5))["a"]}
    with unchecked():
        inputs, _ = graph.export_onnx(
            p, tmp_path / "a.onnx", params, {"image": images(2)}, want=["means"], patch_inputs=patch_inputs
        )
    assert inputs == (("image", "a") if patch_inputs else ("image",))
    shown = others if patch_inputs else params
    found = run_file(tmp_path / "a.onnx", image=images(4), **(others if patch_inputs else {}))
    expected = p.apply(shown, {}, {"image": images(4)})["means"]
    torch.testing.assert_close(found["means"], expected, rtol=0, atol=1e-4)


def test_what_cannot_be_exported_is_named_before_the_exporter_starts(tmp_path):
    parts = {
        "pixels": create.pixels({"a": (3, 8, 8)}),
        "implant": implant.warp(),
        "light": compose.exposure(),
        "victim": infer.classifier(nn.Sequential(nn.Flatten(), nn.Linear(3840, 5)).eval()),
    }
    p = fpatch.pipeline(parts).at("export")
    words = r"node 'implant' \(implant.warp\) draws .*; node 'light' \(compose.exposure\) draws stops"
    with pytest.raises(ValueError, match=words):
        graph.export_onnx(p, tmp_path / "a.onnx", p.init(KEY), {"scene": images(2)})
    assert not list(tmp_path.iterdir())
    other, batch = two_heads(), {"imgae": images(2)}
    with pytest.raises(ValueError, match="the batch lacks 'image'; did you mean 'imgae'"):
        graph.export_onnx(other.at("export"), tmp_path / "a.onnx", other.init(KEY), batch)
