"""For each law a stage that breaks it, as stages have been broken before."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from cases import Case, case, trained_network
from jaxtyping import Float
from torch import Tensor

from fpatch import graph, random
from fpatch.core.types import Range
from fpatch.graph.stage import Stage, Summary, define, deterministic
from fpatch.ops.color import each_channel


@dataclass(frozen=True)
class Config:
    """No settings."""


class Gain(TypedDict):
    """A factor per row."""

    gain: Float[Tensor, " b"]


class Opacity(TypedDict):
    """Per placement."""

    opacity: Float[Tensor, "b k"]


def draw_gain(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": random.uniform(keys, (), 0.5, 1.0)}


def draw_opacity(config: Any, keys: Tensor, batch: Any) -> Opacity:
    return {"opacity": torch.ones(len(keys), 1)}


def scaled(image: Tensor, gain: Tensor) -> dict[str, Tensor]:
    return {"image": image * gain[:, None, None, None]}


def apply_gain(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return scaled(values["image"], sample["gain"])


def photo_case(name: str, sample: Any = draw_gain, apply: Any = apply_gain, config: Any = Config) -> Case:
    return case(define(name, config, sample, apply, reads=("image",), writes=("image",))())


def patch_case(name: str, apply: Any) -> Case:
    return case(define(name, Config, deterministic, apply, reads=("patch",), writes=("patch",))())


# -- randomness


def draw_globally(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": torch.rand(len(keys))}


def draw_by_photograph(config: Any, keys: Tensor, batch: Any) -> Gain:
    first = batch["image_id"][:, None] == batch["image_id"]
    return {"gain": random.uniform(keys[first.int().argmax(1)], ())}


def draw_by_brightness(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": random.uniform(keys, ()) * batch["image"].mean((1, 2, 3))}


def draw_by_position(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": random.uniform(keys, ()) / (1 + torch.arange(len(keys)))}


def draw_by_size(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": random.uniform(keys, ()) / len(keys)}


# -- apply


class Flagged(Stage):
    """Does in training what it does not do on replay."""

    def __call__(self, patch_params: Any, key: Tensor, batch: Any) -> Any:
        out, sample = super().__call__(patch_params, key, batch)
        return {**out, "image": out["image"].flip(-1)}, sample


def apply_in_place(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": values["image"].mul_(sample["gain"][:, None, None, None])}


def apply_global_noise(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": (values["image"] + 0.01 * torch.randn_like(values["image"])).clamp(0, 1)}


def apply_if_recorded(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return scaled(values["image"], sample["gain"] if torch.is_grad_enabled() else sample["gain"] / 2)


def apply_batch_brightness(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": values["image"] * values["image"].mean()}


def apply_by_row_count(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    """Last bits follow the number of rows, as those of a kernel for whole batches may."""
    image = values["image"]
    return {"image": image / len(image) * len(image)}


def apply_joint_product(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    image = values["image"]
    return {"image": image @ torch.eye(image.shape[-1])}


def apply_unclamped(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": values["image"] * (1 + sample["gain"][:, None, None, None])}


def apply_early_mean(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"misclassify": values["logits"].amax(-1).mean()}


def apply_mean_over_objects(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    weight = values["box_valid"].float()
    score = values["detections"]["dense"]["logits"].amax((1, 2))[:, None]
    return {"uncounted": (score * weight).sum(-1) / weight.sum(-1).clamp(min=1)}


# -- populations, replay, gradients


class FirstMember(torch.autograd.Function):
    """A rule for vmap that computes one member and repeats it."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 0.5

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return FirstMember.apply(x.movedim(in_dims[0], 0)[0]).expand(info.batch_size, *x.shape[1:]), 0


def apply_first_member(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": FirstMember.apply(values["image"])}


class FirstMemberBackward(torch.autograd.Function):
    """Right under vmap, but its gradient is that of one member."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 0.5

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return FirstMember.apply(grads[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return FirstMemberBackward.apply(x.movedim(in_dims[0], 0)), 0


def apply_first_member_backward(
    config: Any, patch_params: Any, sample: Any, values: Any
) -> dict[str, Tensor]:
    return {"image": FirstMemberBackward.apply(values["image"]).square()}


def apply_by_photograph(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"by_photograph": values["image_id"] * values["patch"]["hood"].mean()}


def apply_to_axis_0(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Any]:
    return {"patch": {name: patch.flip(0) for name, patch in values["patch"].items()}}


class Labeled(Tensor):
    """A tensor with something written on it that no table holds."""


def draw_beside_the_sample(config: Any, keys: Tensor, batch: Any) -> Gain:
    return {"gain": random.uniform(keys, ()).as_subclass(Labeled)}


def apply_if_labeled(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    gain = sample["gain"] if isinstance(sample["gain"], Labeled) else torch.zeros_like(sample["gain"])
    return scaled(values["image"], gain.as_subclass(Tensor))


def apply_to_the_last(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Any]:
    *earlier, last = values["patch"].items()
    return {"patch": {**{name: patch.detach() for name, patch in earlier}, last[0]: last[1]}}


def apply_blend(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    alpha, color = sample["opacity"][..., None, None], values["patch"]["hood"].mean((-1, -2))[:, None, None]
    return {"image": values["scene"] * (1 - alpha) + color * alpha}


# -- types


def apply_in_own_type(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"squares": values["logits"].square().sum(-1)}


# -- settings and compilation


@dataclass(frozen=True)
class Halved:
    """A setting that is something else in the next config."""

    stops: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stops", self.stops / 2)


@dataclass(frozen=True)
class Untyped:
    """A range that its annotation does not call one: a pair stays a pair."""

    stops: Any = Range(-1.0, 1.0)


def apply_unless_compiled(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": values["image"] if torch.compiler.is_compiling() else values["image"] * 0.5}


def apply_other_gain_to_channels(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Any]:
    gain = 0.5 if isinstance(values["image"], Tensor) else 0.25
    return {"image": each_channel(lambda x: gain * x, values["image"])}


def flagged() -> Case:
    whole = photo_case("flagged")
    return Case(Flagged(whole.stages[0].definition, Config()), whole.params, whole.batch)


# -- networks that are trained


def apply_by_order(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    """A mean over the rows above."""
    counts = torch.arange(1, 1 + len(values["logits"]))[:, None]
    return {"logits": values["logits"].cumsum(0) / counts}


def apply_with_old_buffers(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Any]:
    written = dict(graph.module.apply(config, patch_params, sample, values))
    return written | {"buffers": {name: patch_params[name] for name in written["buffers"]}}


def old_buffers() -> Case:
    whole = trained_network(seed=3, norm="batch")
    stage = whole["net"].stage
    made = Stage(dataclasses.replace(stage.definition, apply=apply_with_old_buffers), stage.config)
    return case(whole | {"net": dataclasses.replace(whole["net"], stage=made)})


# -- another device


def apply_new_gain(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return {"image": values["image"] * values["image"].new_tensor([0.5])}


def apply_host_gain(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    return scaled(values["image"], torch.full((len(values["image"]),), 0.5))


# -- metrics that gather rows


def update_in_place(config: Any, state: Any, values: Any) -> dict[str, Any]:
    state["rows"].extend(values["logits"])
    return state


def merge_lists(config: Any, a: Any, b: Any) -> dict[str, Any]:
    return {"rows": [*a["rows"], *b["rows"]]}


def count_rows(config: Any, state: Any) -> dict[str, float]:
    return {"rows": float(len(state["rows"]))}


def apply_relative_hit(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    """A score relative to that of the batch: a broken row breaks its neighbors."""
    best = values["logits"].amax(-1)
    return {"found": best > best.mean(), "score": best - best.mean()}


# -- goals


@dataclass(frozen=True)
class Goal:
    """The class that is counted; every name is taken for the first."""

    goal: int | str = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal", 0 if isinstance(self.goal, str) else self.goal)


def apply_goal(config: Any, patch_params: Any, sample: Any, values: Any) -> dict[str, Tensor]:
    answer = values["logits"].argmax(-1)
    has_object = torch.ones_like(answer, dtype=torch.bool)
    return {"found": answer == values["target"], "reached": answer == config.goal, "has_object": has_object}


def goal_case(name: str) -> Case:
    names = ("found", "reached", "has_object")
    made = define(name, Goal, deterministic, apply_goal, reads=("logits", "target"), writes=names,
                  role="metric", classes=("goal",))  # fmt: skip
    return case(made())


BROKEN = {
    "a_batch_repeats_its_bits": case(
        define(
            "by_order",
            Config,
            deterministic,
            apply_by_order,
            reads=("logits",),
            writes=("logits",),
            declare=lambda config: {"mixes_rows": True},
        )()
    ),
    "buffers_are_returned_not_written": old_buffers(),
    "a_class_may_have_a_name": goal_case("first_of_all"),
    "rows_of_the_goal_are_no_question": goal_case("every_row"),
    "same_key_same_sample": photo_case("global_draw", sample=draw_globally),
    "draws_depend_on_key_photograph_and_use": case(
        define(
            "by_photograph",
            Config,
            draw_by_photograph,
            apply_gain,
            reads=("image", "image_id"),
            writes=("image",),
        )()
    ),
    "sample_does_not_see_pixels": photo_case("by_brightness", sample=draw_by_brightness),
    "permuted_batch_permutes_sample": photo_case("by_position", sample=draw_by_position),
    "draws_do_not_depend_on_the_batch": photo_case("by_size", sample=draw_by_size),
    "call_is_sample_then_apply": flagged(),
    "inputs_are_left_alone": photo_case("in_place", apply=apply_in_place),
    "global_generators_are_left_alone": photo_case("global_noise", apply=apply_global_noise),
    "the_state_of_torch_is_no_input": photo_case("recorded", apply=apply_if_recorded),
    "rows_do_not_see_their_neighbors": photo_case("batch_brightness", apply=apply_batch_brightness),
    "mixed_rows_see_their_neighbors": case(
        define(
            "unmixed",
            Config,
            draw_gain,
            apply_gain,
            reads=("image",),
            writes=("image",),
            declare=lambda config: {"mixes_rows": True},
        )()
    ),
    "position_keeps_the_bits": photo_case("row_count", apply=apply_by_row_count),
    "products_are_those_of_one_row": photo_case("joint_product", apply=apply_joint_product),
    "pictures_stay_pictures": photo_case("unclamped", apply=apply_unclamped),
    "losses_and_metrics_write_one_number_per_row": case(
        define(
            "early_mean",
            Config,
            deterministic,
            apply_early_mean,
            reads=("logits",),
            writes=("misclassify",),
            role="loss",
        )()
    ),
    "rows_without_an_object_do_not_count": case(
        define(
            "uncounted",
            Config,
            deterministic,
            apply_mean_over_objects,
            reads=("detections", "box_valid"),
            writes=("uncounted",),
            role="loss",
        )()
    ),
    "summaries_are_pure_and_merge": case(
        define(
            "appending",
            Config,
            deterministic,
            lambda *_: {},
            reads=("logits",),
            writes=(),
            role="metric",
            summary=Summary(lambda _: {"rows": []}, update_in_place, merge_lists, count_rows),
        )()
    ),
    "answers_that_are_not_finite_never_count": case(
        define(
            "relative_hit",
            Config,
            deterministic,
            apply_relative_hit,
            reads=("logits",),
            writes=("found", "score"),
            role="metric",
        )()
    ),
    "vmap_equals_a_loop": photo_case("first_member", apply=apply_first_member),
    "flat_population_equals_a_loop": patch_case("axis_0", apply_to_axis_0),
    "what_is_of_the_patch_sees_no_photograph": case(
        define(
            "by_photograph",
            Config,
            deterministic,
            apply_by_photograph,
            reads=("patch", "image_id"),
            writes=("by_photograph",),
            role="loss",
            of_patch=True,
        )()
    ),
    "sample_survives_a_table": photo_case("labeled", sample=draw_beside_the_sample, apply=apply_if_labeled),
    "gradient_reaches_every_leaf": patch_case("last_only", apply_to_the_last),
    "vmapped_gradient_equals_a_loop": photo_case("first_backward", apply=apply_first_member_backward),
    "opacity_0_is_the_clean_scene": case(
        define("blend", Config, draw_opacity, apply_blend, reads=("scene", "patch"), writes=("image",))()
    ),
    "dtypes_of_user_models_never_reach_geometry": case(
        define(
            "own_type",
            Config,
            deterministic,
            apply_in_own_type,
            reads=("logits",),
            writes=("squares",),
            role="metric",
        )()
    ),
    "config_rebuilds_it": photo_case("halved", config=Halved),
    "a_pair_is_a_range": photo_case("untyped", config=Untyped),
    "compiled_equals_eager": photo_case("unless_compiled", apply=apply_unless_compiled),
    "traced_equals_eager": photo_case("untraced", apply=apply_unless_compiled),
    "channels_are_the_image": case(
        define(
            "other_channels",
            Config,
            draw_gain,
            apply_other_gain_to_channels,
            reads=("image",),
            writes=("image",),
            pixelwise=True,
        )()
    ),
    "it_runs_on_another_device": photo_case("host_gain", apply=apply_host_gain),
    "nothing_waits_for_a_gpu": photo_case("new_gain", apply=apply_new_gain),
}
