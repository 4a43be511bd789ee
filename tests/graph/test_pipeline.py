"""The graph of nodes: what it refuses, what it runs, what an edit changes and what it must not change."""

import zlib
from dataclasses import dataclass

import pytest
import torch
from cases import GRAY, SHAPES, case, classifier, demo, detector, make_inputs, two_implants
from laws import assert_equal
from typecheck import unchecked

from fpatch import compose, create, implant, infer, losses, random
from fpatch.core.types import Range
from fpatch.graph.build import build
from fpatch.graph.keys import fold_path, row_keys
from fpatch.graph.node import node
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.graph.samples import control, override
from fpatch.graph.stage import define, deterministic

KEY = random.key(11)


@dataclass(frozen=True)
class Plain:
    """No settings."""


def stage(name, reads=(), writes=(), apply=None, **parts):
    """A stage that repeats what it reads, or nothing, under what it writes."""

    def repeat(config, patch_params, sample, values):
        return {n: values.get(n, 0) for n in writes}

    return define(name, Plain, deterministic, apply or repeat, reads=reads, writes=writes, **parts)()


PIXELS = create.pixels(SHAPES)


# -- what is refused at build


def test_reading_what_a_later_node_writes_is_refused():
    with pytest.raises(
        ValueError, match=r"'loss' reads 'logits'.*'victim' writes; move 'loss' below 'victim'"
    ):
        pipeline({"loss": losses.misclassify(), "victim": infer.classifier(classifier(seed=2))})


def test_a_mask_below_its_implant_is_refused_though_it_is_optional():
    with pytest.raises(ValueError, match="move 'implant' below 'mask'"):
        pipeline({"pixels": PIXELS, "implant": implant.warp(), "mask": create.mask({})})


def test_two_writers_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match="nodes 'a' and 'b' both write 'image', and the second does not read it"
    ):
        pipeline({"pixels": PIXELS, "a": implant.warp(), "b": implant.rectangle()})


def test_two_writers_in_different_phases_are_accepted():
    made = pipeline(
        {
            "pixels": PIXELS,
            "a": node(implant.warp(), phases={"train"}),
            "b": node(implant.rectangle(), phases={"eval"}),
        }
    )
    assert list(made.at("train")) == ["pixels", "a"]
    assert list(made.at("test")) == list(made.at("validation")) == ["pixels", "b"]


def test_all_phases_are_checked():
    with pytest.raises(ValueError, match="phase 'night': nodes 'a' and 'b' both write"):
        pipeline(
            {"pixels": PIXELS, "a": node(implant.warp(), phases={"night"}), "b": node(implant.rectangle())}
        )


@pytest.mark.parametrize(("one", "other"), [("plumless", "buckeroo")])
def test_two_names_of_one_checksum_are_refused(one, other):
    assert zlib.crc32(one.encode()) == zlib.crc32(other.encode())
    with pytest.raises(ValueError, match=f"'{one}' and '{other}' have the same crc32"):
        pipeline({one: compose.exposure(), other: compose.contrast()})
    with pytest.raises(ValueError, match="have the same crc32"):
        pipeline({one: {"x": compose.exposure()}, other: {"x": compose.contrast()}})
    assert len(pipeline({one: {"x": compose.exposure()}, other: {"y": compose.contrast()}})) == 2


def test_an_implant_without_opacity_is_refused():
    with pytest.raises(ValueError, match=r"'draw' .* reads the patch and writes 'image'.*declare `opacity`"):
        pipeline({"pixels": PIXELS, "draw": stage("draw", ("scene", "patch"), ("image",))})


def test_a_detour_of_the_patch_is_refused():
    with pytest.raises(ValueError, match=r"'draw' .* reads 'sheet', made from the patch, and writes 'image'"):
        pipeline(
            {
                "pixels": PIXELS,
                "sheet": stage("sheet", ("patch",), ("sheet",)),
                "draw": stage("draw", ("scene", "sheet"), ("image",)),
            }
        )


def test_a_function_that_could_carry_the_patch_is_refused():
    def draw(patch_params, key, batch):
        return batch, {}

    with pytest.raises(ValueError, match="no control could take the patch out"):
        pipeline({"pixels": PIXELS, "draw": node(draw, writes=["image"])})
    with pytest.raises(ValueError, match="no control could take the patch out"):
        pipeline({"pixels": PIXELS, "draw": node(draw, reads=["patch", "scene"], writes=["image"])})
    assert pipeline({"pixels": PIXELS, "draw": node(draw, reads=["scene"], writes=["scene"])})


def test_moving_the_scene_under_a_composed_image_is_refused():
    parts = {"pixels": PIXELS, "implant": implant.warp()}
    with pytest.raises(
        ValueError, match=r"'flip' .* moves 'scene', but 'implant' has already made 'image' from it"
    ):
        pipeline({**parts, "flip": compose.horizontal_flip()})
    assert pipeline({"flip": compose.horizontal_flip(), **parts})
    image = {"scene": "image"}
    assert pipeline({**parts, "flip": node(compose.horizontal_flip(), reads=image, writes=image)})


def test_moving_pixels_but_not_their_boxes_is_refused():
    crop = stage("crop", ("image",), ("image",), geometric=True)
    parts = {
        "pixels": PIXELS,
        "implant": implant.warp(),
        "crop": crop,
        "victim": infer.detector(detector(seed=1)),
    }
    with pytest.raises(ValueError, match=r"'crop' .* moves the pixels but not 'boxes', which 'vanish' reads"):
        pipeline({**parts, "vanish": losses.vanish()})
    assert pipeline(parts)


def test_a_node_inside_another_is_refused():
    with pytest.raises(ValueError, match="'noise' and 'noise/field': one is inside the other"):
        pipeline({"noise": compose.read_noise(), "noise/field": compose.exposure()})


def test_a_stage_without_gradient_after_the_patch_is_refused_in_training():
    proof = stage("proof", ("patch",), ("patch",), gradient=False)
    posterize = stage("posterize", ("image",), ("image",), gradient=False)
    with pytest.raises(
        ValueError, match=r"'proof' passes no gradient on to 'patch' of 'pixels'.*phases = ..eval.. in TOML"
    ):
        pipeline({"pixels": PIXELS, "proof": proof})
    with pytest.raises(ValueError, match="'posterize' passes no gradient on to 'image' of 'implant'"):
        pipeline({"pixels": PIXELS, "implant": implant.warp(), "posterize": posterize})
    assert pipeline({"pixels": PIXELS, "proof": node(proof, phases={"eval"})})
    assert pipeline({"posterize": posterize})


def test_suppression_declares_that_it_cuts_the_gradient():
    assert not infer.suppress.traits.gradient


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a.b": compose.blur()}, "'a.b' is no name of a node; leave out"),
        ({"": compose.blur()}, "is no name of a node"),
        ({"camera/": compose.blur()}, "'camera/' is no name of a node"),
        ({"a": {"b": compose.blur()}, "a/b": compose.hue()}, "there are two nodes 'a/b'; rename one"),
        (
            [compose.blur()],
            r"pipeline\(parts\) must be a mapping, got a list; name each stage, \{name: stage\}",
        ),
        ({"camera": {"blur": 3}}, "'camera/blur'.*: expected a stage, node, function or mapping, got 3"),
        ({"x": node(compose.blur(), reads=["../image"])}, "'x': '../image' leads above the top"),
    ],
)
def test_a_wrong_part_is_named(parts, message):
    with pytest.raises(ValueError, match=message), unchecked():
        pipeline(parts)


@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        ({"reads": ["image", "scene"]}, r"compose.blur reads 1 names, \['image'\], but .* has 2"),
        ({"reads": {"imag": "x"}}, "compose.blur reads no 'imag'; did you mean 'image'"),
        ({"writes": {"out": "x"}}, "compose.blur writes no 'out'"),
    ],
)
def test_wrong_wiring_is_named(wiring, message):
    with pytest.raises(ValueError, match=message):
        node(compose.blur(), **wiring)


def test_a_function_needs_names_as_lists():
    with pytest.raises(ValueError, match=r"a plain function declares no names; give writes=\[...\]"):
        node(lambda patch_params, key, batch: (batch, {}), reads=["image"])


def test_one_patch_made_twice_is_refused():
    second = node(create.pixels({"roof": (3, 4, 4)}), reads=[], writes=["other"])
    with pytest.raises(ValueError, match="second: an earlier node also makes the patch 'roof'"):
        pipeline({"pixels": PIXELS, "second": second}).init(KEY)


# -- phases


def test_phases_must_be_chosen_before_running():
    with pytest.raises(ValueError, match=r"'affine' names phases; choose a phase first"):
        demo().sample(KEY, make_inputs())


@pytest.mark.parametrize(("phase", "hint"), [("trian", "did you mean 'train'"), ("night", "known: export")])
def test_an_unknown_phase_is_refused(phase, hint):
    with pytest.raises(ValueError, match=f"no node is alive in phase '{phase}'; {hint}"):
        demo().at(phase)


def test_a_phase_without_a_node_is_refused():
    made = pipeline({"blur": node(compose.blur(), phases="train")})
    with pytest.raises(ValueError, match="no node is alive in phase 'test'; known: train"):
        made.at("test")


def test_eval_stands_for_two_phases():
    with pytest.raises(ValueError, match="choose 'validation' or 'test'"):
        demo().at("eval")


def test_any_phase_that_a_node_names_exists():
    made = pipeline({"blur": compose.blur(), "night": node(compose.exposure(), phases="night")})
    assert list(made.at("night")) == ["blur", "night"]
    assert list(made.at("train")) == ["blur"]


def test_required_names():
    made = demo()
    assert set(made.required("train")) == {
        *("image_id", "scene", "quads", "quad_patch", "quad_valid", "boxes", "labels", "box_valid")
    }
    assert set(made.required("test")) == set(made.required("train"))
    assert pipeline({"blur": node(compose.blur(), reads=["photo"], writes=["soft"])}).required() == ("photo",)


# -- names


def test_groups_flatten_and_relative_names_resolve():
    made = pipeline(
        {
            "camera": {
                "lens": {"blur": node(compose.blur(), reads=["../../scene"], writes=["./soft"])},
                "gain": node(compose.exposure(), reads=["./lens/soft"], writes=["../image"]),
            }
        }
    )
    assert list(made) == ["camera/lens/blur", "camera/gain"]
    assert made["camera/lens/blur"].writes == {"image": "camera/lens/soft"}
    assert made["camera/gain"].reads == {"image": "camera/lens/soft"}
    assert made["camera/gain"].writes == {"image": "image"}
    out, _ = made({}, KEY, make_inputs())
    assert {"camera/lens/soft", "image"} <= set(out)


def test_names_of_patches_are_filled_in_the_order_written():
    assert two_implants()["sticker"].stage.config.names == ("hood", "roof")
    given = pipeline({"pixels": PIXELS, "implant": implant.warp(names=("roof",))})
    assert given["implant"].stage.config.names == ("roof",)


def test_names_of_patches_follow_a_parameterization_that_is_exchanged():
    for made in (two_implants(), two_implants().to("cpu")):
        other = made | {"pixels": create.pixels({"door": (3, 4, 4), "roof": (3, 4, 4)})}
        assert other["sticker"].stage.config.names == ("door", "roof")
    assert two_implants().since("poster")["poster"].stage.config.names == ("hood", "roof")


# -- edits


def test_a_pipeline_is_an_immutable_mapping():
    made = demo()
    assert len(made) == len(list(made)) == 13
    assert "camera/blur" in made
    assert made["implant"].stage.definition is implant.warp
    with pytest.raises(TypeError):
        made["implant"] = node(implant.warp())  # type: ignore[index]
    with pytest.raises(KeyError, match="no node 'camera/blurr'; did you mean 'camera/blur'"):
        made["camera/blurr"]


def test_edits():
    made = demo()
    assert list(made.without("camera", "hit")) == [
        *("pixels", "total_variation", "non_printability", "affine", "implant"),
        *("victim", "vanish", "suppress"),
    ]
    assert list(made.upto("implant")) == list(made)[:5]
    assert list(made.since("victim")) == ["victim", "vanish", "suppress", "hit"]
    brighter = made | {"camera": {"exposure": compose.exposure(Range(1, 2)), "hue": compose.hue()}}
    assert list(brighter) == [*made, "camera/hue"]
    assert brighter["camera/exposure"].stage.config.stops == Range(1, 2)
    assert len(made) == 13
    with pytest.raises(KeyError, match="no node 'camra'; did you mean"):
        made.without("camra")
    with pytest.raises(KeyError, match="no node 'nothing'"):
        made.upto("nothing")


def test_upto_then_since_is_the_whole():
    subject = case(demo().at("train"))
    made, sample = subject.subject, subject.subject.sample(KEY, subject.batch)
    whole = made.apply(subject.params, sample, subject.batch)
    half = made.upto("camera/contrast").apply(subject.params, sample, subject.batch)
    assert_equal(made.since("camera/noise").apply(subject.params, sample, half), whole)


# -- draws


def test_dropping_and_adding_nodes_leaves_the_other_draws():
    made, batch = demo().at("train"), case(demo().at("train")).batch
    sample = made.sample(KEY, batch)
    fewer = made.without("affine", "camera/exposure").sample(KEY, batch)
    more = (made | {"hue": compose.hue()}).sample(KEY, batch)
    assert_equal(fewer, {path: sample[path] for path in fewer})
    assert_equal({path: more[path] for path in sample}, sample)
    assert set(more) - set(sample) == {"hue"}


def test_a_node_draws_from_its_path_folded_once_per_segment():
    made, batch = demo().at("train"), case(demo().at("train")).batch
    keys = random.fold_in(random.fold_in(row_keys(KEY, batch), "camera"), "blur")
    assert torch.equal(fold_path(row_keys(KEY, batch), "camera/blur"), keys)
    assert_equal(made.sample(KEY, batch)["camera/blur"], made["camera/blur"].stage.sample(keys, batch))


def test_a_nested_pipeline_draws_as_a_stage_of_its_own():
    camera = {"exposure": compose.exposure(), "noise": compose.read_noise()}
    batch = make_inputs()
    inner = pipeline(camera).sample(random.fold_in(row_keys(KEY, batch), "camera"), batch)
    outer = pipeline({"camera": camera}).sample(KEY, batch)
    assert_equal({f"camera/{path}": fields for path, fields in inner.items()}, outer)


def test_nodes_of_one_stream_share_a_draw():
    parts = {"a": compose.exposure(), "b": compose.exposure()}
    shared = {name: node(part, stream="gray") for name, part in parts.items()}
    batch = make_inputs()
    apart, together = pipeline(parts).sample(KEY, batch), pipeline(shared).sample(KEY, batch)
    assert not torch.equal(apart["a"]["stops"], apart["b"]["stops"])
    assert torch.equal(together["a"]["stops"], together["b"]["stops"])
    assert torch.equal(
        together["a"]["stops"], pipeline({"gray": compose.exposure()}).sample(KEY, batch)["gray"]["stops"]
    )


def test_a_batch_without_what_is_drawn_for_is_refused():
    subject = case(demo().at("train"))
    batch = {**subject.batch, "quad": subject.batch["quads"]}
    del batch["quads"]
    with pytest.raises(
        ValueError, match="node 'implant' samples from 'quads', which the batch lacks; did you mean 'quad'"
    ):
        subject.subject.sample(KEY, batch)


# -- running


def test_wanted_names_prune_the_nodes():
    def fail(config, patch_params, sample, values):
        raise RuntimeError("this must not run")

    subject = case(demo().at("train"))
    made = subject.subject | {"costly": stage("costly", ("image",), ("costly",), fail)}
    sample = made.sample(KEY, subject.batch)
    wanted = made.apply(subject.params, sample, subject.batch, want=("vanish", "total_variation"))
    assert list(wanted) == ["vanish", "total_variation"]
    expected = subject.subject.apply(subject.params, sample, subject.batch)
    assert_equal(wanted, {name: expected[name] for name in wanted})
    with pytest.raises(RuntimeError, match="this must not run") as error:
        made.apply(subject.params, sample, subject.batch)
    assert error.value.__notes__ == ["in node 'costly': test_pipeline:costly()"]
    with pytest.raises(ValueError, match=r"no value 'vanis'; did you mean 'vanish'"):
        made.apply(subject.params, sample, subject.batch, want=("vanis",))


def test_a_reader_sees_the_last_writer_above_it():
    """The loss on the gray patch is computed before it is stacked, and stays so when it alone is wanted."""
    above = {
        "pixels": create.pixels({"hood": (1, 4, 5)}),
        "tv": losses.total_variation(),
        "stack": create.stack(),
    }
    made = pipeline({**above, "after": node(losses.total_variation(), writes=["after"])})
    batch, params = make_inputs(), made.init(KEY)
    trace = made.trace(params, {}, batch)
    assert trace["pixels"]["patch"]["hood"].shape == (1, 4, 5)
    assert trace["stack"]["patch"]["hood"].shape == (3, 4, 5)
    assert list(made._need(("total_variation",))) == ["pixels", "tv"]
    assert list(made._need(("after",))) == ["pixels", "stack", "after"]


def test_a_trace_keeps_what_each_node_wrote():
    subject = case(two_implants())
    sample = subject.subject.sample(KEY, subject.batch)
    trace = subject.subject.trace(subject.params, sample, subject.batch)
    out = subject.subject.apply(subject.params, sample, subject.batch)
    assert list(trace) == list(subject.subject)
    assert torch.equal(trace["sticker"]["image"], out["image"])
    assert not torch.equal(trace["poster"]["image"], out["image"])


def test_a_sample_must_hold_every_node_that_draws():
    subject = case(two_implants())
    sample = subject.subject.sample(KEY, subject.batch)
    sample["stickers"] = sample.pop("sticker")
    with pytest.raises(ValueError, match="no entry for the node 'sticker'; did you mean 'stickers'"):
        subject.subject.apply(subject.params, sample, subject.batch)


def test_nodes_read_and_write_under_their_own_names():
    made = pipeline(
        {
            "left": node(compose.blur(), reads=["image"], writes=["soft"]),
            "right": node(compose.exposure(), reads={"image": "soft"}, writes={"image": "bright"}),
        }
    )
    out, sample = made({}, KEY, make_inputs())
    blurred = compose.blur().apply({}, sample["left"], make_inputs())["image"]
    assert torch.equal(out["soft"], blurred)
    assert torch.equal(out["image"], make_inputs()["image"])
    bright = compose.exposure().apply({}, sample["right"], {"image": blurred})["image"]
    assert torch.equal(out["bright"], bright)


def test_stages_composed_by_hand_equal_the_pipeline():
    subject = case(pipeline_by_hand(), quad_patch=torch.tensor([[0, 1, 1], [1, 0, 0], [0, 1, 0]]))
    out, sample = subject.subject(subject.params, KEY, subject.batch)
    keys, values, drawn = row_keys(KEY, subject.batch), subject.batch, {}
    stages = {
        "pixels": create.pixels({"hood": (1, 20, 31), "roof": (1, 16, 9)}),
        "resize": create.resize({"roof": (9, 12)}),
        "stack": create.stack(3),
        "warp": implant.warp(jitter_frac=0.1, names=("hood", "roof")),
        "exposure": compose.exposure(),
        "noise": compose.read_noise(),
        "detector": infer.detector(detector(seed=1)),
        "vanish": losses.vanish(),
    }
    for name, made in stages.items():
        values, drawn[name] = made(subject.params, random.fold_in(keys, name), values)
    assert_equal({path: drawn[path] for path in sample}, sample)
    assert_equal(values, out)


def pipeline_by_hand() -> Pipeline:
    return pipeline(
        {
            "pixels": create.pixels({"hood": (1, 20, 31), "roof": (1, 16, 9)}),
            "resize": create.resize({"roof": (9, 12)}),
            "stack": create.stack(3),
            "warp": implant.warp(jitter_frac=0.1),
            "exposure": compose.exposure(),
            "noise": compose.read_noise(),
            "detector": infer.detector(detector(seed=1)),
            "vanish": losses.vanish(),
        }
    )


def test_a_pipeline_in_a_function_is_a_node():
    inner = pipeline({"exposure": compose.exposure(), "noise": compose.read_noise()})
    camera = node(
        lambda patch_params, key, batch: inner(patch_params, key, batch),
        reads=["image", "image_id"],
        writes=["image"],
    )
    batch = make_inputs()
    out, sample = pipeline({"camera": camera})({}, KEY, batch)
    nested = pipeline({"camera": {"exposure": compose.exposure(), "noise": compose.read_noise()}})
    expected, drawn = nested({}, KEY, batch)
    assert torch.equal(out["image"], expected["image"])
    assert list(sample["camera"]) == ["key"]
    assert_equal({path: fields for path, fields in sample.items() if path != "camera"}, drawn)


# -- control


def test_one_patch_of_three_is_left_out_by_the_same_edit():
    subject = case(demo().at("train"))
    made, sample = subject.subject, subject.subject.sample(KEY, subject.batch)
    without = override(sample, {"implant/opacity/1": 0.0})
    params = {n: v.clone().requires_grad_() for n, v in subject.params.items()}
    image = made.apply(params, without, subject.batch, want=("image",))["image"]
    side, rear = torch.autograd.grad(image.square().sum(), [params["side"], params["rear"]])
    assert bool((side != 0).any())
    assert bool((rear != 0).any())
    absent = {**subject.batch, "quad_valid": subject.batch["quad_valid"] & torch.tensor([True, False, True])}
    assert_equal(
        made.apply(subject.params, without, subject.batch)["image"],
        made.apply(subject.params, sample, absent)["image"],
    )


def test_control_changes_nothing_else():
    subject = case(two_implants())
    sample = subject.subject.sample(KEY, subject.batch)
    clean = control(sample)
    for path, fields in sample.items():
        for field, value in fields.items():
            expected = torch.zeros_like(value) if field == "opacity" else value
            assert torch.equal(clean[path][field], expected)
    assert bool((sample["poster"]["opacity"] == 1).all())


# -- init and project


def test_patches_start_from_their_names_and_stay_in_range():
    made = demo()
    params = made.init(KEY)
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        "side": (3, 20, 36),
        "rear": (3, 20, 20),
    }
    more = made | {"pixels": create.pixels({"side": (3, 20, 36), "door": (3, 8, 8)})}
    assert torch.equal(more.init(KEY)["side"], params["side"])
    moved = {name: 4 * value - 1 for name, value in params.items()}
    projected = made.project({**moved, "bias": torch.tensor([7.0])})
    assert projected["bias"].item() == 7.0
    assert_equal({n: projected[n] for n in params}, {n: v.clamp(0, 1) for n, v in moved.items()})


def test_the_start_is_a_range():
    params = create.pixels({"hood": (3, 40, 50)}, start=Range(0.4, 0.6)).definition.init(
        create.pixels({"hood": (3, 40, 50)}, start=Range(0.4, 0.6)).config, KEY
    )
    assert 0.4 <= float(params["hood"].min()) < 0.41
    assert 0.59 < float(params["hood"].max()) <= 0.6


# -- talking about it


def test_describe_says_what_each_node_does():
    text = demo().describe().splitlines()
    assert len(text) == 13
    assert text[3] == (
        "affine            compose.affine(angle_deg=(-5.0, 5.0), shear_deg=(-5.0, 5.0), scale=(0.9, 1.1), "
        "shift_frac=(-0.05, 0.05)): scene, quads?, quad_valid?, boxes?, box_valid? -> "
        "scene, quads, quad_valid, boxes, box_valid  [train]"
    )
    assert "victim            infer.detector(" in text[9]
    assert text[0].endswith("params -> patch")


# -- config


def test_wiring_survives_the_config():
    made = pipeline(
        {
            "pixels": PIXELS,
            "poster": node(implant.warp(), phases={"eval"}, stream="poster"),
            "sticker": node(
                implant.rectangle(), reads={"scene": "photo"}, writes=["other"], phases={"train", "night"}
            ),
        }
    )
    assert build(made.config).config == made.config
    assert build(made.config)["sticker"].reads["scene"] == "photo"
    assert build(made.config)["poster"] == made["poster"]
    assert made.config["sticker"]["phases"] == ["night", "train"]


def test_a_live_object_must_be_given_again():
    made = pipeline({"victim": infer.classifier(classifier(seed=2).value)})
    assert made.config["victim"]["model"] == {"live": "cases:TinyClassifier"}
    with pytest.raises(
        ValueError, match=r"pipeline.victim.model is a live object .* give resources=\{'victim/model'"
    ):
        build(made.config)
    model = classifier(seed=2).value
    assert build(made.config, resources={"victim/model": model})["victim"].stage.config.model is model


def test_gray_patches_are_stacked_in_a_pipeline_too():
    out, _ = pipeline({"stack": create.stack(3)})({}, KEY, make_inputs(patch=GRAY))
    assert out["patch"]["hood"].shape == (3, 20, 31)


# -- the name of the phase


def name_phase(patch_params, key, batch):
    return {"length": torch.full(batch["image_id"].shape, float(len(batch["phase"])))}, {}


def test_a_node_may_read_the_name_of_the_phase():
    p = pipeline({"name": node(name_phase, reads=["image_id", "phase"], writes=["length"])})
    batch = {"image_id": torch.tensor([7, 3]), "draw": torch.tensor([0, 0])}
    for phase in ("train", "validation", "export"):
        chosen = p.at(phase)
        assert chosen.required() == ("image_id",)
        out, _ = chosen({}, random.key(0), batch)
        assert out["length"].tolist() == [float(len(phase))] * 2
        assert "phase" not in out
        assert chosen.at("train")["name"].phase == "train"
    assert p.config == p.at("train").config
    with pytest.raises(ValueError, match=r"reads 'phase', which is not there; choose one: pipeline\.at"):
        p({}, random.key(0), batch)


def test_a_value_of_the_name_phase_is_that_value():
    p = pipeline({"name": node(name_phase, reads=["image_id", "phase"], writes=["length"])}).at("test")
    batch = {"image_id": torch.tensor([7]), "draw": torch.tensor([0]), "phase": torch.zeros(1)}
    assert p({}, random.key(0), batch)[0]["length"].tolist() == [1.0]


def test_no_node_writes_the_name_of_the_phase():
    with pytest.raises(ValueError, match="'a' writes 'phase', the name of the phase"):
        pipeline({"a": node(name_phase, reads=["image_id"], writes=["phase"])})


def test_outputs_are_what_no_later_node_reads():
    parts = {
        "pixels": create.pixels({"a": (3, 4, 4)}),
        "smooth": losses.total_variation(),
        "implant": implant.warp(),
        "bright": node(compose.exposure(), phases="train"),
        "double": node(compose.exposure(), phases="eval", writes=["seen"]),
    }
    p = pipeline(parts)
    assert p.outputs("train") == ("total_variation", "image")
    assert p.outputs("test") == ("total_variation", "seen")
