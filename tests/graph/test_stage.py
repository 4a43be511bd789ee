"""What `define` accepts, how keys become row keys, and what a stage says when it is used wrongly."""

import dataclasses
import pickle
from dataclasses import dataclass
from typing import TypedDict

import pytest
import torch
from cases import CASES, make_inputs
from jaxtyping import Float
from torch import Tensor
from typecheck import unchecked

from fpatch import compose, create, implant, random
from fpatch.core.registry import lookup
from fpatch.core.schema import encode
from fpatch.core.types import Range
from fpatch.graph.build import build
from fpatch.graph.functions import from_function
from fpatch.graph.keys import row_keys
from fpatch.graph.stage import Definition, Stage, Traits, define, deterministic

KEY = random.key(3)


@dataclass(frozen=True)
class Settings:
    """One setting."""

    gain: float = 1.0


class Drawn(TypedDict):
    """One field."""

    x: Float[Tensor, " b"]


def draw(config, keys, batch) -> Drawn:
    return {"x": random.uniform(keys, ())}


def keep(config, patch_params, sample, values):
    return {"image": values["image"]}


def made(sample=draw, apply=keep, **parts) -> Stage:
    return define("made", Settings, sample, apply, reads=("image",), writes=("image",), **parts)()


# -- define


def test_a_config_that_can_change_is_refused():
    @dataclass
    class Loose:
        gain: float = 1.0

    with pytest.raises(ValueError, match=r"define\('loose'\): config must be a frozen dataclass"):
        define("loose", Loose, draw, keep, reads=(), writes=())


def test_a_setting_with_a_name_of_the_wiring_is_refused():
    @dataclass(frozen=True)
    class Wired:
        stream: str = "x"

    with pytest.raises(ValueError, match="'stream' is a reserved word; rename it"):
        define("wired", Wired, draw, keep, reads=(), writes=())


def test_a_sample_that_does_not_declare_its_fields_is_refused():
    def undeclared(config, keys, batch) -> dict:
        return {}

    with pytest.raises(ValueError, match="annotate its return type with a TypedDict"):
        define("undeclared", Settings, undeclared, keep, reads=(), writes=())


@pytest.mark.parametrize("names", [{"reads": ("image", "boxes")}, {"writes": ("image", "mask")}], ids=str)
def test_a_pixelwise_stage_that_is_more_is_refused(names):
    asked = {"reads": ("image",), "writes": ("image",), **names}
    with pytest.raises(ValueError, match="reads and writes `image` and nothing else, got reads"):
        define("more", Settings, draw, keep, pixelwise=True, **asked)


def test_an_unknown_keyword_is_a_type_error_with_the_nearest():
    with pytest.raises(TypeError, match=r"define: no keyword 'vmpa'; did you mean 'vmap'\?"):
        define("typo", Settings, draw, keep, reads=(), writes=(), vmpa=False)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="no definition 'test_stage:typo'"):
        lookup("test_stage:typo", Definition, "here")


def test_settings_may_replace_traits():
    def declare(config):
        return {"vmap": config.gain < 2, "reads": ("image", "boxes")}

    loud = define(
        "loud", Settings, draw, keep, reads=("image",), writes=("image",), gradient=False, declare=declare
    )
    assert loud(3.0).definition.traits == Traits(vmap=False, gradient=False)
    assert loud(3.0).definition.reads == ("image", "boxes")
    assert loud().definition.traits == loud.traits == Traits(gradient=False)


def test_a_stage_has_the_id_of_its_family():
    assert compose.exposure.name == "compose.exposure"
    assert made().definition.name == "test_stage:made"


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="stop"):
        compose.exposure(stop=3)  # type: ignore[call-arg]


def test_a_config_prints_compares_and_pickles():
    stage = compose.exposure(Range(-1, 2))
    assert repr(stage) == "compose.exposure(stops=(-1, 2))"
    assert repr(create.mask({"a": torch.ones(8, 9)})) == "create.mask(masks={'a': tensor [8, 9]})"
    assert "names=('a',)" in repr(implant.warp(names=("a",)))
    assert pickle.loads(pickle.dumps(stage.config)) == stage.config
    assert compose.exposure() == compose.exposure() != stage
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.config.stops = Range(0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: compose.exposure(Range(1, -1)),
            r"exposure\(stops\) must be \(low, high\).*got \(1, -1\); swap the two",
        ),
        (lambda: compose.exposure(Range(-99, 0)), r"exposure\(stops\) must be .* within \[-10, 10\]"),
        (lambda: compose.blur(Range(float("nan"), 1)), r"blur\(sigma_px\) must be"),
        (lambda: implant.warp(jitter_frac=2.0), r"warp\(jitter_frac\) must be between 0 and 0.5, got 2.0"),
        (lambda: create.stack(0), r"stack\(num_channels\) must be at least 1, got 0"),
        (lambda: create.pixels({}), r"pixels\(shapes\) must name at least one patch"),
        (lambda: create.pixels({"hood": (3, 0, 8)}), r"'hood' must be \(channels, height, width\)"),
        (lambda: create.resize({"hood": (0, 8)}), r"'hood' must be \(height, width\)"),
    ],
)
def test_a_wrong_setting_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- keys


def test_row_keys_fold_in_the_photograph_then_the_use():
    batch = {"image_id": torch.tensor([7, 7, 3]), "draw": torch.tensor([0, 1, 0])}
    expected = [random.fold_in(random.fold_in(KEY, i), d) for i, d in [(7, 0), (7, 1), (3, 0)]]
    assert torch.equal(row_keys(KEY, batch), torch.stack(expected))


def test_row_keys_pass_through():
    keys = random.split(KEY, 3)
    assert row_keys(keys, {}) is keys


def test_a_repeated_use_of_a_photograph_is_refused():
    batch = {"image_id": torch.tensor([7, 3, 7]), "draw": torch.tensor([1, 1, 1])}
    with pytest.raises(ValueError, match=r"repeats \(image_id, draw\) = \(7, 1\).*number the uses"):
        row_keys(KEY, batch)


def test_a_batch_without_draws_and_a_seed_for_a_key_are_refused():
    with pytest.raises(ValueError, match=r"got 0; make one with fpatch\.random\.key\(seed\)"), unchecked():
        row_keys(0, make_inputs())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch must hold 'draw'"):
        row_keys(KEY, {"image_id": torch.arange(3)})


# -- sample and apply


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, dtype=torch.float64), torch.zeros(2), torch.zeros(()), torch.zeros(3).numpy(), 1.0],
    ids=["double", "two rows", "no rows", "numpy", "number"],
)
def test_a_sample_of_another_form_is_refused(value):
    def wrong(config, keys, batch) -> Drawn:
        return {"x": value}

    with pytest.raises(
        ValueError, match=r"test_stage:made: sample\['x'\] must be a float32.* of 3 rows, got"
    ):
        made(sample=wrong).sample(KEY, make_inputs())


def test_a_sample_of_other_fields_is_refused():
    """A control would leave the patch in, if `opacity` were declared and something else drawn."""

    def wrong(config, keys, batch) -> Drawn:
        return {"X": torch.zeros(len(keys))}  # type: ignore[typeddict-unknown-key]

    with (
        pytest.raises(
            ValueError, match=r"test_stage:made: sample must draw \['x'\], as declared, but drew \['X'\]"
        ),
        unchecked(),
    ):
        made(sample=wrong).sample(KEY, make_inputs())


def test_a_missing_input_is_named():
    inputs = make_inputs()
    inputs["images"] = inputs.pop("image")
    with pytest.raises(ValueError, match="made reads 'image', which is not there; did you mean 'images'"):
        made()({}, KEY, inputs)


@pytest.mark.parametrize(
    "written", [{}, {"image": 0, "mask": 0}, {"scene": 0}], ids=["none", "more", "other"]
)
def test_apply_writes_what_is_declared(written):
    stage = made(apply=lambda config, patch_params, sample, values: written)
    with pytest.raises(ValueError, match=r"apply must write \['image'\], as declared, but wrote"):
        stage({}, KEY, make_inputs())


def test_apply_sees_only_what_is_declared():
    seen = {}

    def look(config, patch_params, sample, values):
        seen.update(values)
        return {"image": values["image"]}

    define("looking", Settings, draw, look, reads=("image",), optional=("boxes",), writes=("image",))()(
        {}, KEY, make_inputs()
    )
    assert set(seen) == {"image", "boxes"}


def test_an_optional_value_is_written_only_where_it_is_read():
    out, _ = CASES["affine of the scene alone"].subject({}, KEY, CASES["affine of the scene alone"].batch)
    assert set(out) == {"image_id", "draw", "scene", "quad_valid"}


def test_what_a_stage_declares_may_depend_on_its_settings():
    light = compose.augmentation("RandomBrightness", {"brightness": (0.5, 1.5)})
    turn = compose.augmentation("RandomRotation", {"degrees": 5.0})
    assert light.definition.fields == ("on", "seed", "size_px", "brightness_factor")
    assert turn.definition.fields == ("on", "seed", "size_px", "degrees")
    assert not light.definition.traits.geometric
    assert turn.definition.traits.geometric
    assert turn.definition.writes == ("scene", "quads", "quad_valid", "boxes", "box_valid")
    rebuilt = build({"turn": {"stage": "compose.augmentation", **encode(turn.config)}})["turn"].stage
    assert rebuilt.definition == turn.definition


def test_an_implant_needs_to_know_the_order_of_the_patches():
    with pytest.raises(ValueError, match=r"warp\(names\) must list the patches that quad_patch counts"):
        implant.warp()({}, KEY, make_inputs())


def test_an_implant_refuses_photographs_in_bytes():
    levels = (255 * make_inputs()["scene"]).byte()
    with pytest.raises(
        ValueError, match=r"float32 \[b.* in 0\.\.1, got uint8 .*; convert it with .float\(\) / 255"
    ):
        implant.warp(names=("a",))(
            {}, KEY, make_inputs() | {"scene": levels, "patch": {"a": torch.rand(3, 8, 8)}}
        )


# -- plain functions


def test_a_function_replays_by_its_row_keys():
    def noisy(patch_params, key, batch):
        return {"image": batch["image"] + random.normal(key, (3, 97, 131))}, {}

    stage, inputs = from_function(noisy, ("image",), ("image",)), make_inputs()
    out, sample = stage({}, KEY, inputs)
    assert torch.equal(sample["key"], row_keys(KEY, inputs))
    assert torch.equal(stage.apply({}, sample, inputs)["image"], out["image"])
    assert not torch.equal(out["image"], inputs["image"])


def test_a_function_may_leave_a_value_as_it_is():
    def same(patch_params, key, batch):
        return batch, {}

    out, _ = from_function(same, None, ("image",))({}, KEY, make_inputs())
    assert torch.equal(out["image"], make_inputs()["image"])


def test_a_function_may_not_write_more_than_it_says():
    def greedy(patch_params, key, batch):
        return {**batch, "image": batch["image"] * 0.5, "scene": batch["scene"] * 0.5}, {}

    with pytest.raises(
        ValueError, match=r"must write \['image'\], but wrote \['image', 'scene'\]; name them: node\("
    ):
        from_function(greedy, None, ("image",))({}, KEY, make_inputs())


def test_a_function_of_values_and_params_is_a_loss():
    def size(values, patch_params):
        return {"size": patch_params["hood"].square().mean().expand(len(values["image_id"]))}

    stage = from_function(size, None, ("size",))
    assert stage.definition.role == "loss"
    out, sample = stage({"hood": torch.full((3, 2, 2), 2.0)}, KEY, make_inputs())
    assert out["size"].tolist() == [4.0, 4.0, 4.0]
    assert sample == {}


@pytest.mark.parametrize("function", [lambda: 0, lambda a: 0, lambda a, b, c, d: 0])
def test_a_function_of_another_number_of_arguments_is_refused(function):
    with pytest.raises(ValueError, match=r"this one takes \(.*\)$"):
        from_function(function, None, ("image",))


def test_deterministic_draws_nothing():
    assert deterministic(None, KEY, {}) == {}
    assert create.stack.fields == ()
    assert implant.warp.fields == ("opacity", "scale", "jitter")
