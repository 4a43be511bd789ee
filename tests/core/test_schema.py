"""Settings as JSON values and back, ids, and objects that a config can only name."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fpatch import compose, create
from fpatch.core.checks import check_number, check_range, nearest
from fpatch.core.files import file_digest
from fpatch.core.registry import identify, lookup, register
from fpatch.core.resource import Loader, Resource, define_loader, resolve
from fpatch.core.schema import decode, encode, to_toml
from fpatch.core.types import Range
from fpatch.graph.stage import Definition
from fpatch.study.config import assign, load_study


@dataclass(frozen=True)
class Inner:
    """Two settings."""

    count: int
    where: Path = Path("a/b")


@dataclass(frozen=True)
class Outer:
    """One setting of every kind."""

    inner: Inner
    ranges: Mapping[str, Range] = field(default_factory=dict)
    sizes: tuple[int, int] = (1, 2)
    names: tuple[str, ...] | None = None
    mode: Literal["fast", "slow"] = "fast"
    rate: float = 0.5
    on: bool = False

    def __post_init__(self) -> None:
        check_number("outer.rate", self.rate, 0.0, 1.0)


FULL = Outer(
    inner=Inner(3, Path("x.png")),
    ranges={"a": Range(0.0, 1.0), "b": Range(-1.0, 2.5)},
    sizes=(4, 5),
    names=("hood", "roof"),
    mode="slow",
    rate=1.0,
    on=True,
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(encode(value)))


@pytest.mark.parametrize("value", [FULL, Outer(Inner(0))])
def test_settings_survive_json(value):
    again = decode(Outer, through_json(value), "outer")
    assert again == value
    assert repr(again) == repr(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text())
def test_numbers_and_strings_survive(rate, count, name):
    assert decode(float, through_json(rate), "x") == rate
    assert decode(int, through_json(count), "x") == count
    assert decode(str, through_json(name), "x") == name


def test_toml_of_a_config_is_read_back():
    config = {"a": 1, "b": {"c": [1.5, 'x"y\n'], "d": {"e": {"f": True}}, "g/h": {"i": 1e-9}}, "none": None}
    assert tomllib.loads(to_toml(config)) == config | {"none": False}


@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.booleans()))
@example({"\x7f": "\x7f"})
def test_any_settings_are_read_back_from_toml(settings):
    config = {**settings, "table": settings}
    assert tomllib.loads(to_toml(config)) == config


def test_a_whole_number_is_a_number_but_not_the_reverse():
    made = decode(float, 3, "x")
    assert made == 3.0
    assert isinstance(made, float)
    with pytest.raises(ValueError, match=r"x: expected a whole number, got 3.0"):
        decode(int, 3.0, "x")


@pytest.mark.parametrize("value", [[0.5, 2], {"low": 0.5, "high": 2}, (0.5, 2.0)])
def test_a_range_is_a_pair(value):
    made = decode(Range, value, "x")
    assert made == Range(0.5, 2.0)
    assert isinstance(made, Range)
    assert isinstance(made.high, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rat": 0.1}, "outer: unknown key 'rat'; did you mean 'rate'"),
        ({"rate": "fast"}, "outer.rate: expected a number, got 'fast'"),
        ({"rate": True}, "outer.rate: expected a number, got True"),
        ({"rate": 7.0}, "outer.rate must be between 0 and 1, got 7.0"),
        ({"on": 1}, "outer.on: expected true or false, got 1"),
        ({"mode": "slower"}, "outer.mode: expected one of 'fast', 'slow', got 'slower'"),
        ({"sizes": [1, 2, 3]}, r"outer.sizes: expected \[a whole number, a whole number\], got \[1, 2, 3\]"),
        ({"sizes": [1, 2.5]}, r"outer.sizes\[1\]: expected a whole number, got 2.5"),
        ({"names": "hood"}, "outer.names: expected .* or nothing, got 'hood'"),
        ({"names": ["hood", 3]}, r"outer.names\[1\]: expected a string, got 3"),
        ({"ranges": {"a": [1]}}, r"outer.ranges.a: expected \[low, high\], got \[1\]"),
        ({"ranges": {"a": ["x", 1]}}, "outer.ranges.a.low: expected a number, got 'x'"),
        ({"inner": {}}, r"outer.inner: the key 'count' is required; add it \(a whole number\)"),
        ({"inner": 3}, "outer.inner: expected a table of settings, got 3"),
    ],
)
def test_errors_name_the_place_and_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        decode(Outer, {**through_json(FULL), **change}, "outer")


def test_a_live_object_is_named_and_not_decoded():
    assert encode(torch.nn.ReLU()) == {"live": "torch.nn.modules.activation:ReLU"}
    assert encode(through_json) == {"live": "test_schema:through_json"}
    assert encode({"b", "a"}) == ["a", "b"]


# -- sentences


def test_nearest_suggests_one_or_lists_all():
    assert nearest("exposur", ["exposure", "blur"]) == "did you mean 'exposure'?"
    assert nearest("zzz", ["exposure", "blur"]) == "known: blur, exposure"
    assert nearest("zzz", []) == "none is known"


@pytest.mark.parametrize("value", [(2.0, 1.0), (0.0, 1.5), (float("nan"), 1.0), (0.0, float("nan"))])
def test_wrong_ranges(value):
    with pytest.raises(ValueError, match="scale must be") as error:
        check_range("scale", Range(*value), 0.0, 1.0)
    assert ("swap the two" in str(error.value)) == (value == (1.0, 0.5))
    check_range("scale", Range(0.5, 0.5), 0.0, 1.0)


def test_infinity_is_refused():
    with pytest.raises(ValueError, match=r"scale must be \(low, high\) .* both finite, got \(1.0, inf\)"):
        check_range("scale", Range(1.0, float("inf")), 0.0)
    with pytest.raises(ValueError, match="rate must be finite, got inf"):
        check_number("rate", float("inf"), 0.0)


def test_a_turned_range_is_told_to_swap():
    with pytest.raises(ValueError, match=r"within \[0, 1\], got \(1.0, 0.5\); swap the two"):
        check_range("scale", Range(1.0, 0.5), 0.0, 1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_wrong_numbers(value):
    with pytest.raises(ValueError, match="rate must be between 0 and 1, got"):
        check_number("rate", value, 0.0, 1.0)


# -- ids


def test_ids_name_their_module():
    assert identify("exposure", "fpatch.compose.exposure") == "compose.exposure"
    assert identify("mine", "lab.stages") == "lab.stages:mine"
    assert lookup("compose.exposure", Definition, "x") is compose.exposure
    assert lookup("create.mask_image", Loader, "x") is create.mask_image


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ("compose.exposre", "pipeline.x: no definition 'compose.exposre'; did you mean 'compose.exposure'"),
        (
            "compos.exposure",
            "pipeline.x: 'compos.exposure' needs the module 'fpatch.compos', which cannot be imported",
        ),
        ("no_such_module:mine", "needs the module 'no_such_module'"),
        ("create.mask_image", "no definition 'create.mask_image'"),
        (":blur", "':blur' needs the module '', which cannot be imported"),
        (".lab:blur", "'.lab:blur' needs the module '.lab', which cannot be imported"),
        ("test_schema:mine", "no definition 'test_schema:mine'; none is known; .* a plain function has none"),
    ],
)
def test_unknown_ids_are_refused(identity, message):
    with pytest.raises(ValueError, match=message):
        lookup(identity, Definition, "pipeline.x")


def test_an_import_that_fails_inside_a_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "lab_with_missing_parts.py").write_text("import lab_with\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'lab_with'"):
        lookup("lab_with_missing_parts:mine", Definition, "x")


def test_an_id_belongs_to_one_module():
    @dataclass(frozen=True)
    class Thing:
        module: str

    register("test_schema:thing", Thing("test_schema"))
    register("test_schema:thing", Thing("test_schema"))
    with pytest.raises(
        ValueError, match="'test_schema:thing' is defined in test_schema and again in elsewhere"
    ):
        register("test_schema:thing", Thing("elsewhere"))


# -- resources


def read_number(weights: str, times: int = 1) -> int:
    return times * int(Path(weights).read_text())


def count_up(start: int = 0) -> list[int]:
    return [start]


number = define_loader("number", read_number)
counter = define_loader("counter", count_up)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.txt"
    path.write_text("21")
    return path


def test_a_resource_is_loaded_once_from_its_values(weights):
    resource = number(weights, times=2)
    assert resource.sha256 == hashlib.sha256(b"21").hexdigest()
    assert resource.value == resolve(resource) == 42
    again = decode(Resource, through_json(resource), "x")
    assert again == resource
    assert again.value == 42
    assert counter(start=3).value == [3]
    made = counter()
    assert made.value is made.value
    assert resolve(7) == 7


def test_changed_weights_are_refused(weights):
    resource = number(weights)
    weights.write_text("22")
    with pytest.raises(
        ValueError, match=r"resource 'test_schema:number': .* has changed: sha256 .* restore the file"
    ):
        _ = resource.value


def test_missing_weights_are_refused(weights):
    resource = number(weights)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no such file; check the path"):
        _ = resource.value
    with pytest.raises(FileNotFoundError, match="no such file"):
        number(weights)


def test_a_path_is_pinned_where_it_starts(weights):
    pinned = Resource("test_schema:number", "weights.txt").pinned(weights.parent)
    assert pinned == Resource("test_schema:number", str(weights), file_digest(weights))
    assert pinned.value == 21
    assert Resource("test_schema:counter").pinned(weights.parent) == Resource("test_schema:counter")
    assert str(pinned) == "test_schema:number(weights.txt)"
    assert str(Resource("a:b", arguments={"size": 3, "kind": "x"})) == "a:b(size=3, kind='x')"


@pytest.mark.parametrize("with_weights", [True, False])
def test_a_loader_that_fails_is_named(weights, with_weights):
    name, path = ("number", str(weights)) if with_weights else ("counter", None)
    made = Resource(f"test_schema:{name}", path, arguments={"time": 2})
    source = f" from {weights}" if with_weights else ""
    with pytest.raises(ValueError, match=f"resource '{made.loader}' cannot be loaded{source}: .* unexpected"):
        _ = made.value


def test_an_unknown_loader_is_refused():
    with pytest.raises(
        ValueError, match="resource: no loader 'test_schema:numbr'; did you mean 'test_schema:number'"
    ):
        _ = Resource("test_schema:numbr").value


# -- a model in several files


def load_described(weights: str, description: str) -> str:
    """The text of three files: weights, a description that an argument names, and data beside the weights."""
    paths = Path(weights), Path(description), Path(weights).with_name("external.data")
    return " ".join(path.read_text() for path in paths)


def load_listed(weights: str, parts: Any) -> str:
    """The text of the weights."""
    return Path(weights).read_text()


listed = define_loader("listed", load_listed)
described = define_loader("described", load_described, lambda weights, description: ["external.data", "no"])


@pytest.fixture
def parts(tmp_path) -> dict[str, Path]:
    paths = {n: tmp_path / n for n in ("weights.bin", "model.yaml", "external.data")}
    for name, path in paths.items():
        path.write_text(name[0])
    return paths


def test_all_files_of_a_model_have_digests(parts):
    made = described(parts["weights.bin"], description=str(parts["model.yaml"]))
    digests = {str(parts["model.yaml"]): file_digest(parts["model.yaml"])}
    assert made.files == digests | {"external.data": file_digest(parts["external.data"])}
    assert made.value == "w m e"
    assert decode(Resource, through_json(made), "x") == made
    assert str(made).startswith("test_schema:described(weights.bin + external.data, description=")
    study = {"loader": made.loader, "weights": "weights.bin", "arguments": dict(made.arguments)}
    assert decode(Resource, study, "x").pinned(parts["weights.bin"].parent).files == made.files


@pytest.mark.parametrize("name", ["weights.bin", "model.yaml", "external.data"])
def test_each_changed_or_missing_file_is_named(parts, name):
    made = described(parts["weights.bin"], description=str(parts["model.yaml"]))
    before = parts[name].read_text()
    parts[name].write_text("other")
    with pytest.raises(ValueError, match=rf"{name} has changed: sha256 .* restore the file or train again"):
        _ = made.value
    parts[name].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file"):
        _ = made.value
    parts[name].write_text(before)
    assert made.value == "w m e"


def test_files_in_lists_and_tables_of_arguments_have_digests(parts):
    names = [str(parts["model.yaml"]), str(parts["external.data"])]
    for nested in (names, {"first": names[0], "second": {"third": names[1]}}):
        made = listed(parts["weights.bin"], parts=nested)
        assert set(made.files) == set(names)
        assert decode(Resource, through_json(made), "x") == made
        assert str(made).startswith("test_schema:listed(weights.bin, parts=")
        assert made.value == "w"
        parts["external.data"].write_text("other")
        with pytest.raises(ValueError, match=r"external\.data has changed: sha256"):
            _ = Resource(made.loader, made.weights, made.sha256, made.arguments, made.files).value
        parts["external.data"].write_text("e")


def test_a_record_without_other_digests_opens_as_before(parts):
    """A record of one file has the same config as before; an old one of several files is checked by one."""
    weights = str(parts["weights.bin"])
    old = Resource(described.name, weights, file_digest(weights), {"description": str(parts["model.yaml"])})
    assert "files" not in encode(old)
    parts["external.data"].write_text("x")
    assert old.value == "w m x"
    pinned = old.pinned(parts["weights.bin"].parent)
    assert set(pinned.files) == {str(parts["model.yaml"])}


def test_other_weights_and_arguments_have_their_own_digests(parts, tmp_path):
    made = described(parts["weights.bin"], description=str(parts["model.yaml"]))
    config = {"model": encode(made)}
    second = tmp_path / "second.yaml"
    second.write_text("s")
    assign(config, "model.arguments.description", str(second))
    again = decode(Resource, config["model"], "x").pinned(tmp_path)
    assert again.files == {"external.data": made.files["external.data"], str(second): file_digest(second)}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.bin").write_text("2")
    assign(config, "model.weights", "other/weights.bin")
    assert set(decode(Resource, config["model"], "x").pinned(tmp_path).files) == {str(second)}


def test_all_wrong_settings_are_said_at_once(tmp_path):
    """Sections, unknown and missing keys, types, rules, and nodes: a line each, and no type of Python."""
    text = """
[data]
placement = "a.csv"
size = 96
[pipeline]
a = {stage = "compose.expsure"}
b = {stage = "compose.exposure", stops = "x"}
group = {c = {stage = "compose.jpeg", quality = [0, 300]}, d = {}}
[objective]
weights = {vanish = "much"}
[optimizer]
learning_rate = -1.0
momentum = 2
[train]
num_steps = 0
batch_size = -1
[evaluate]
block = 1.5
best = 3
[trian]
"""
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match="16 errors") as error:
        load_study(tmp_path / "study.toml")
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/study.toml: ")
    for words in (
        "unknown section 'trian'", "data: unknown key 'placement'", "the key 'placements' is required",
        "data.size: expected [height, width], each a whole number, got 96",
        "pipeline.a.stage: no definition 'compose.expsure'",
        "pipeline.b.stops: expected [low, high]", "pipeline.group.c", "pipeline.group.d",
        "objective.weights.vanish: expected a number, got 'much'", "optimizer.learning_rate must be",
        "optimizer.momentum must be", "train.num_steps must", "train.batch_size must",
        "evaluate.block: expected a whole number", "evaluate.best: expected a string",
    ):  # fmt: skip
        assert words in said, said
    assert not re.search(r"<class|None|float|tuple|\bint\b", said)


def test_all_errors_of_one_stage_are_said_together():
    from fpatch import build

    settings = {"stage": "compose.jpeg", "quality": [0, 200], "p": 3.0}
    with pytest.raises(ValueError, match=r"jpeg\(quality\)") as error:
        build({"squeeze": settings})
    first, second = str(error.value).splitlines()
    assert first.startswith("pipeline.squeeze: jpeg(quality) must be")
    assert second == "pipeline.squeeze: jpeg(p) must be between 0 and 1, got 3.0"
