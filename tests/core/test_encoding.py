"""Text is UTF-8 in every locale, and a mark of byte order in front of it does no harm."""

import ast
import json
from pathlib import Path

import pytest

import fpatch
from fpatch import load_study
from fpatch.demo.tiny import tiny_study
from fpatch.metrics import score_detections

FILES = sorted(Path(fpatch.__file__).parent.rglob("*.py"))
METHODS = {"read_text": 1, "write_text": 2}
"""Calls that name an encoding, and the number of arguments with it."""


@pytest.mark.parametrize("name", METHODS)
def test_every_text_has_an_encoding(name):
    calls = [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]
    assert calls
    bare = [f"{path}:{n.lineno}" for path, n in calls if len(n.args) + len(n.keywords) < METHODS[name]]
    assert not bare, f"give the encoding: {bare}"


def test_a_study_may_begin_with_a_mark_of_byte_order(tmp_path):
    tiny_study(tmp_path)
    path = tmp_path / "study.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_study(path).name == "lamp"


def test_detections_may_begin_with_a_mark_of_byte_order(tmp_path):
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "Schlüssel"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "score": 0.9}]
    for name, value in (("truth", truth), ("found", found)):
        text = json.dumps(value, ensure_ascii=False).encode("utf-8-sig")
        (tmp_path / f"{name}.json").write_bytes(text)
    assert list(score_detections(tmp_path / "truth.json", tmp_path / "found.json").classes) == ["Schlüssel"]
