"""Objects of other libraries, swapped arguments and wrong trees: one sentence with the way out, at once."""

import copy
import dataclasses
from types import SimpleNamespace

import kornia.augmentation as kornia
import numpy as np
import pytest
import torch
import torchmetrics
import torchvision
from cases import make_inputs, noise
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from typecheck import unchecked

import fpatch
from fpatch import compose, create, data, implant, infer, losses, metrics, random, viz
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.tune import load_plan

KEY = random.key(3)
PATCH = {"hood": torch.zeros(3, 4, 4)}
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
ADAM = torch.optim.Adam([torch.zeros(3, requires_grad=True)], lr=0.02)


def rows(**values):
    return {"image_id": torch.tensor([0, 1]), "draw": torch.tensor([0, 0]), **values}


def small(part, name="part"):
    return pipeline({"pixels": create.pixels({"hood": (3, 4, 4)}), name: part})


def check_said(call, *words):
    with unchecked(), pytest.raises(ValueError, match=r"\w") as raised:
        call()
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


# -- objects of other libraries


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (NETWORK, ("got a network, Sequential", "infer.classifier(model)", "infer.yolo(model")),
        (kornia.RandomAffine(5.0), ("kornia's RandomAffine", "compose.augmentation")),
        (v2.ColorJitter(), ("torchvision's ColorJitter", "a global generator", "compose.augmentation")),
        (torchvision.transforms.ToTensor(), ("torchvision's ToTensor", "fpatch.compose")),
        (torchmetrics.MeanSquaredError(), ("torchmetrics' MeanSquaredError", "metrics.torchmetric(")),
        (nn.CrossEntropyLoss(), ("torch's CrossEntropyLoss", "(values, patch_params) -> {term: [b]}")),
        (nn.Flatten, ("the class Flatten",)),
        (compose.exposure, ("compose.exposure, which makes a stage; call it: compose.exposure(...)",)),
        (infer.torchvision_model, ("infer.torchvision_model, which makes a network", "infer.classifier(")),
        (infer.ultralytics_model(architecture="a.yaml"), ("give it to a stage",)),
        ("compose.exposure", ("the string 'compose.exposure'", "fpatch.build")),
        (3, ("expected a stage, node, function or mapping, got 3",)),
    ],
)
def test_no_object_of_another_library_is_taken_for_a_stage(part, words):
    check_said(lambda: pipeline({"part": part}), "pipeline['part']: expected a stage", *words)
    check_said(lambda: node(part, writes=["x"]), "node(...): expected a stage or a function")


@pytest.mark.parametrize("make", [infer.classifier, infer.detector, lambda m: infer.yolo(m, format="v8")])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet18", "got the string 'resnet18'; name it in infer.torchvision_model(architecture='resnet18'"),
        (NETWORK.state_dict(), "call load_state_dict with this"),
        (torchvision.models.resnet18, "got resnet18; call it"),
        (nn.Flatten, "got Flatten; call it"),
        (kornia.RandomAffine(5.0), "got RandomAffine; it is no victim"),
        (3, "got int; make one, such as infer.torchvision_model(...)"),
    ],
)
def test_what_is_no_network_is_refused_when_the_victim_is_made(make, model, words):
    check_said(lambda: make(model), "(model) must be a torch.nn.Module or a Resource", words)


class Answers(nn.Module):
    """A network of another library, by its answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.ones(()))

    def forward(self, images):
        mean = self.scale * images.mean((1, 2, 3))
        return self.answer(mean)


def test_a_detector_of_torchvision_in_another_stage_names_its_own():
    answer = Answers(
        lambda m: [{"boxes": m.expand(1, 4), "scores": m, "labels": m.long()} for m in m[:, None]]
    )
    values = {"image": noise("image", 2, 3, 8, 8)}
    for make in infer.classifier, infer.detector:
        check_said(
            lambda make=make: make(answer.eval()).apply({}, {}, values), "infer.torchvision_detector(model)"
        )


def test_a_detector_of_transformers_names_its_own():
    answer = Answers(lambda m: {"logits": m[:, None, None], "pred_boxes": m[:, None, None].expand(-1, 1, 4)})
    values = {"image": noise("image", 2, 3, 8, 8)}
    check_said(
        lambda: infer.detector(answer.eval()).apply({}, {}, values), "infer.transformers_detector(model)"
    )


def test_a_classifier_of_transformers_is_taken():
    plain, named = (
        Answers(make).eval()
        for make in (
            lambda m: m[:, None].expand(-1, 3),
            lambda m: {"logits": m[:, None].expand(-1, 3), "x": m},
        )
    )
    values = {"image": noise("image", 2, 3, 8, 8)}
    found, expected = (infer.classifier(model).apply({}, {}, values)["logits"] for model in (named, plain))
    assert torch.equal(found, expected)


def test_a_metric_is_given_as_an_object():
    check_said(
        lambda: metrics.torchmetric(torchmetrics.MeanSquaredError), "torchmetric(metric) must be", "call the"
    )
    check_said(lambda: metrics.torchmetric("Accuracy"), "make one by name, as metrics.torchmetrics(name=")


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            ADAM,
            "a Adam; give fpatch.make_optimizer(fpatch.Optimizer('adam', learning_rate=0.02, schedule=",
        ),
        (torch.optim.SGD, "the class SGD; give fpatch.make_optimizer(fpatch.Optimizer('sgd'"),
        (fpatch.Optimizer(), "a Optimizer; give fpatch.make_optimizer(settings, num_steps=...)"),
        ("adam", "a str; give fpatch.make_optimizer(fpatch.Optimizer(), num_steps=...)"),
    ],
)
def test_an_optimizer_of_torch_names_ours(optimizer, words):
    objective = fpatch.Objective(small(losses.total_variation()), {"total_variation": 1.0})
    check_said(lambda: fpatch.make_state(objective, optimizer, KEY), "a transformation of gradients", words)
    check_said(lambda: fpatch.make_step(objective, optimizer), words)
    check_said(lambda: fpatch.make_population_step([objective], [optimizer]), words)
    if not isinstance(optimizer, fpatch.Optimizer):
        check_said(
            lambda: fpatch.make_optimizer(optimizer, 10), "make_optimizer takes settings, fpatch.Optimizer("
        )


@pytest.mark.parametrize("device", [torch.float64, torch.bfloat16, "float64"])
def test_a_pipeline_moves_to_devices_alone(device):
    for subject in small(compose.exposure()), compose.exposure(), infer.classifier(NETWORK):
        check_said(lambda subject=subject: subject.to(device), ".to takes a device", str(device))


# -- images of another type or form


STAGES = {
    "scene": (
        implant.warp(names=("hood",)),
        compose.affine(),
        compose.augmentation("RandomAffine", {"degrees": 9.0}),
    ),
    "image": (compose.exposure(), compose.blur(), infer.classifier(NETWORK)),
}


@pytest.mark.parametrize(
    ("change", "way"),
    [
        (lambda x: x.double(), "float64 [3, 3, 97, 131]; convert it with .float()"),
        (lambda x: x.bfloat16(), "bfloat16 [3, 3, 97, 131]; convert it with .float()"),
        (lambda x: x.half(), "float16 [3, 3, 97, 131]; convert it with .float()"),
        (lambda x: (x * 255).byte(), "uint8 [3, 3, 97, 131]; convert it with .float() / 255"),
        (
            lambda x: x[:, None],
            "[3, 1, 3, 97, 131]; the frames of a video are rows of a batch: flatten(0, 1)",
        ),
        (lambda x: x.permute(0, 2, 3, 1), "[3, 97, 131, 3]; channels come first: permute(0, 3, 1, 2)"),
        (lambda x: x * 255, "divide by 255"),
    ],
)
@pytest.mark.parametrize("name", STAGES)
def test_images_of_another_form_are_named_by_every_stage(name, change, way):
    inputs = make_inputs()
    batch = inputs | {name: change(inputs[name])}
    for stage in STAGES[name]:
        check_said(lambda stage=stage: stage({}, KEY, batch), f"batch[{name!r}]", stage.definition.name, way)
        whole = pipeline({"part": stage})
        check_said(lambda whole=whole: whole({}, KEY, batch), f"batch[{name!r}]", "node 'part'", way)


def test_images_of_another_type_are_named_where_a_sample_is_given():
    image = noise("image", 2, 3, 8, 8)
    stage = infer.classifier(NETWORK)
    for given in image.double(), image.bfloat16(), image[0], image[:, None]:
        check_said(
            lambda given=given: stage.apply({}, {}, {"image": given}),
            "image must be float32 [b, 3, h, w] in 0..1, got",
        )


# -- functions


def one(values, patch_params):
    return values["patch"]["hood"].mean().expand(2)


def two(patch_params, values):
    return {"two": values["patch"]["hood"].mean().expand(2)}


def three(p, v):
    return {"three": v["patch"]["hood"].mean().expand(2)}


def four(values, patch_params):
    return {"other": values["patch"]["hood"].mean().expand(2)}


def five(batch, key, patch_params):
    return batch, {}


def six(patch_params, key, batch):
    return batch["image_id"]


def seven(values, *, patch_params):
    return {}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (one, "one must return {term: [b]}, got float32 [2]; return {'one': ...}, one number per row"),
        (two, "or (values, patch_params) as a loss; this one takes (patch_params, values)"),
        (
            three,
            "three looks up 'patch', a value, in the patch parameters; a loss is called as (values, patch",
        ),
        (four, "four must write ['four'], but wrote ['other']; name them: node(four, writes=['other'])"),
        (
            five,
            "takes (patch_params, key, batch), or (values, patch_params) as a loss; this one takes (batch,",
        ),
        (six, "six must return (out, sample), out a mapping, got int64 [2]"),
        (seven, "give 'patch_params' a default"),
        (max, "has no signature; wrap it in a function"),
    ],
)
def test_a_function_of_another_form_is_named(function, words):
    check_said(lambda: small(function, function.__name__)(PATCH, KEY, rows()), words)


def test_arguments_with_defaults_are_the_functions_own():
    def weighted(values, patch_params, weight=2.0):
        return {"weighted": weight * values["patch"]["hood"].mean().expand(2)}

    out, _ = small(weighted, "weighted")({"hood": torch.ones(3, 4, 4)}, KEY, rows())
    assert out["weighted"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("returned", [torch.ones(2), None, [1.0]])
def test_a_stage_of_ones_own_returns_mappings(returned):
    made = fpatch.define("odd", type(compose.exposure().config), fpatch.deterministic, lambda *_: returned,
                         reads=("image",), writes=("image",))  # fmt: skip
    check_said(
        lambda: made().apply({}, {}, {"image": noise("image", 2, 3, 8, 8)}), "odd: what apply returns must be"
    )


def test_swapped_arguments_of_a_call_are_named():
    for subject in small(losses.total_variation()), compose.exposure():
        check_said(
            lambda subject=subject: subject(PATCH, rows(), KEY), "the order is (patch_params, key, batch)"
        )


# -- trees of parameters and states


def test_parameters_of_another_pipeline_are_named():
    whole = small(losses.total_variation())
    for params in {"hod": PATCH["hood"]}, {}:
        check_said(
            lambda params=params: whole(params, KEY, rows()), "create.pixels: patch_params lacks 'hood'"
        )
        check_said(
            lambda params=params: whole.project(params), "patch_params lacks 'hood'", "pipeline.init(key)"
        )
    check_said(
        lambda: whole(PATCH["hood"], KEY, rows()),
        "patch_params must be {patch: tensor}, got float32 [3, 4, 4]",
    )


@pytest.fixture(scope="module")
def training():
    objective = fpatch.Objective(small(losses.total_variation()), {"total_variation": 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer(), num_steps=10)
    state = fpatch.make_state(objective, optimizer, KEY)
    return fpatch.make_step(objective, optimizer), state, optimizer


def test_states_of_another_training_are_named(training):
    step, state, optimizer = training
    assert step(state, rows())[0].step == 1
    other = fpatch.make_optimizer(fpatch.Optimizer("sgd"), num_steps=10)
    for params in {"hod": PATCH["hood"]}, {**PATCH, "roof": PATCH["hood"]}, {"hood": torch.zeros(3, 5, 5)}:
        check_said(
            lambda params=params: step(state._replace(params=params), rows()), "state.params must hold"
        )
    for opt_state in None, other.init(PATCH), optimizer.init({"hod": PATCH["hood"]}):
        wrong = state._replace(opt_state=opt_state)
        check_said(lambda wrong=wrong: step(wrong, rows()), "state.opt_state is not that of this optimizer")
    check_said(lambda: step(rows(), state), "step takes (state, batch), and got a dict as the state")
    check_said(lambda: step(state, KEY), "step takes (state, batch), and got a Tensor as the batch")


def test_an_error_of_a_stage_is_not_explained_away(training):
    step, state, _ = training

    def fail(config, patch_params, sample, values):
        raise RuntimeError("out of paper")

    made = fpatch.define("fails", type(compose.exposure().config), fpatch.deterministic, fail,
                         reads=("image",), writes=("image",))  # fmt: skip
    with pytest.raises(RuntimeError, match="out of paper"):
        made().apply({}, {}, {"image": noise("image", 2, 3, 8, 8)})
    with pytest.raises(ValueError, match=r"must hold 'image_id'"):
        step(state, {})


def test_an_objective_takes_a_pipeline_and_weights_by_term():
    whole = small(losses.total_variation())
    check_said(
        lambda: fpatch.Objective(whole, ["total_variation"]),
        "objective(weights) must be a mapping, got a list",
    )
    check_said(
        lambda: fpatch.Objective({"a": 1}, {"b": 1.0}), "objective(pipeline) must be a Pipeline, got a dict"
    )


STUDY, SMOOTH = object(), small(losses.total_variation())
STATE, LOADER = fpatch.TrainState(PATCH, None, 0, KEY), SimpleNamespace(batches=lambda step: iter(()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fpatch.train("study.toml"),
            "train(study) must be a Study, got a str; load one by fpatch.loa",
        ),
        (lambda: fpatch.sweep("study.toml", {}), "sweep(study) must be a Study, got a str"),
        (lambda: fpatch.load_study(STUDY), "load_study(path) must be a str or a Path, got an object"),
        (lambda: load_plan(STUDY), "load_plan(path) must be a str or a Path, got an object"),
        (lambda: fpatch.evaluate_run(STUDY), "got an object; give the folder, such as run.folder"),
        (lambda: fpatch.replay_run(fpatch.Run("a")), "got a Run; give the folder, such as run.folder"),
        (lambda: fpatch.resume(STUDY), "got an object; give the folder, such as run.folder"),
        (lambda: fpatch.resume_sweep(STUDY), "got an object; give the folder, such as journal.folder"),
        (
            lambda: fpatch.evaluate(PATCH, SMOOTH, [], KEY),
            "evaluate(pipeline) must be a Pipeline, got a dict",
        ),
        (
            lambda: fpatch.evaluate(SMOOTH, PATCH, KEY, []),
            "evaluate(dataset) must be a Dataset, got a Tensor",
        ),
        (
            lambda: fpatch.control(3),
            "control(sample) must be a Mapping, got an int; draw one by pipeline.sam",
        ),
        (lambda: SMOOTH.apply(PATCH, 3, {}), "sample must be a mapping, got a int; draw one by pipeline.sam"),
        (
            lambda: SMOOTH.apply(PATCH, {}, 3),
            "batch must be a mapping, got a int; the order is (patch_params",
        ),
        (lambda: random.key("x"), "seed must be a whole number, got 'x'"),
        (lambda: random.split(0), "key must be a key tensor, got 0; make one with fpatch.random.key(seed)"),
        (lambda: random.split({"a": 1}), "key must be a key tensor, got a dict; make one"),
        (lambda: SMOOTH.at(["train"]), "phase must be a str, got a list; name one"),
        (lambda: create.pixels((3, 8, 8)), "create.pixels(shapes): expected a table, each value [a whole"),
        (lambda: create.pixels({"a": torch.zeros(3)}), "create.pixels(shapes): expected [a whole number, a"),
        (
            lambda: create.pixels({"a": (3, 8.5, 8)}),
            "create.pixels(shapes): expected a whole number, got 8.5",
        ),
        (lambda: infer.suppress(num_detections=1.5), "suppress(num_detections): expected a whole number"),
        (lambda: SMOOTH({"hood": PATCH["hood"].numpy()}, KEY, rows()), "must be a float32 tensor, got a nda"),
        (lambda: fpatch.Objective(SMOOTH, {"total_variation": "1"}), "must be a number, got '1'"),
        (lambda: fpatch.make_optimizer(fpatch.Optimizer(), "9"), "make_optimizer(num_steps) must be a whole"),
        (
            lambda: fpatch.make_optimizer(fpatch.Optimizer(), 0),
            "make_optimizer(num_steps) must be at least 1",
        ),
        (
            lambda: fpatch.make_step(SMOOTH, None),
            "objective must be an Objective, got a Pipeline; make it by",
        ),
        (lambda: fpatch.make_state(SMOOTH, None, KEY), "objective must be an Objective, got a Pipeline"),
        (
            lambda: next(fpatch.fit(PATCH, len, [], 3)),
            "fit(state) must be a state of the training, got a dict",
        ),
        (
            lambda: next(fpatch.fit(STATE, [], len, 3)),
            "fit(step) must be a function (state, batch), got a list",
        ),
        (
            lambda: next(fpatch.fit(STATE, len, [], 3)),
            "fit(loader) must be a Loader, got a list; fpatch.data",
        ),
        (lambda: next(fpatch.fit(STATE, len, LOADER, "3")), "fit(num_steps) must be a whole number, got '3'"),
        (lambda: fpatch.success([1]), "success(table) must hold columns by name, got a list"),
        (lambda: fpatch.override({"a": 1}, {}), "sample['a'] must be a Mapping or a Tensor, got an int"),
        (lambda: fpatch.control(PATCH), "control(sample) must be a Mapping, got a Tensor; draw one"),
        (lambda: viz.plot("a.png"), "an image must be a tensor, got a str; fpatch.data.read_image(path)"),
        (
            lambda: viz.plot(Image.new("L", (2, 2))),
            "got a Image; torchvision.transforms.functional.pil_to_tensor",
        ),
        (lambda: viz.plot(np.zeros((8, 8, 3))), "got a ndarray; torch.from_numpy(pixels).permute(2, 0, 1)"),
        (
            lambda: viz.plot_boxes({}, "a.png"),
            "plot_boxes(path) must be a str or a PathLike, got a dict",
        ),
        (
            lambda: data.write_image(PATCH["hood"], "a.png"),
            "write_image(path) must be a str or a PathLike, go",
        ),
    ],
)
def test_an_argument_of_another_kind_names_the_right_one(call, words):
    with unchecked():
        check_said(call, words)


def test_a_sample_of_another_batch_is_named():
    whole = pipeline({"pixels": create.pixels({"hood": (3, 4, 4)}), "implant": implant.warp()})
    batch = make_inputs()
    sample = whole.sample(KEY, batch)
    part = {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    check_said(
        lambda: whole.apply(PATCH, sample, part), "the sample has 3 rows, and the batch 2; draw it for"
    )


@pytest.mark.parametrize(
    ("left", "way_out"),
    [("boxes", "the data lack objects; give data.objects"), ("detections", "add a detector before it")],
)
def test_a_value_that_is_missing_says_where_it_comes_from(left, way_out):
    given = {"detections", "boxes", "box_valid", "labels"} - {left}
    with pytest.raises(ValueError, match=f"vanish reads {left!r}, which is not there; {way_out}"):
        losses.vanish().apply({}, {}, dict.fromkeys(given))


class Changed(nn.Module):
    """A classifier whose answer is changed."""

    def __init__(self, change):
        super().__init__()
        self.network, self.change = NETWORK, change

    def forward(self, images):
        return self.change(self.network(images))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            copy.deepcopy(NETWORK).half(),
            "Sequential: its weights are torch.float16, and the images torch.float32",
        ),
        (copy.deepcopy(NETWORK).double(), "give model.float(), or convert the images in its forward"),
        (Changed(lambda x: (x, 1)).eval(), "Changed: its answer must hold tensors alone, got ([2, 5], int)"),
        (
            Changed(lambda x: x.detach().numpy()).eval(),
            "its answer must hold tensors alone, got ndarray; wrap it",
        ),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_a_victim_of_another_type_is_named(model, words, grad):
    with torch.set_grad_enabled(grad):
        check_said(lambda: infer.classifier(model).apply({}, {}, {"image": torch.zeros(2, 3, 8, 8)}), words)


@dataclasses.dataclass(frozen=True)
class Plain:
    gain: float = 0.5


def make_stage(apply=lambda *_: {}, *, config=Plain, name="made", **given):
    wiring = {"reads": ("image",), "writes": ("image",), **given}
    return fpatch.define(name, config, fpatch.deterministic, apply, **wiring)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reads": "image"}, "reads must be a tuple of names, got 'image'; add a comma"),
        ({"writes": "image"}, "writes must be a tuple of names, got 'image'; add a comma"),
        ({"role": "los"}, "role must be 'stage' or 'victim' or 'loss' or 'metric' or 'drawing', got 'los'"),
        ({"name": ""}, "define(''): the name '' must hold a letter or a digit"),
        ({"name": "a/b"}, "the name 'a/b' must not hold '/'"),
        ({"config": Plain()}, "config must be a frozen dataclass, the class itself, got Plain(gain=0.5)"),
    ],
)
def test_a_wrong_declaration_of_a_stage_is_named(given, words):
    with unchecked():
        check_said(lambda: make_stage(**given), words)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda image: image[:1], "got float32 [1, 3, 8, 8]"),
        (lambda image: image.mean(), "got float32 []"),
        (lambda image: image.numpy(), "got a ndarray"),
    ],
)
def test_a_stage_that_loses_rows_is_named(change, got):
    """One row would be spread over the others: each of them would get the answer of the first."""
    made = make_stage(lambda config, params, sample, values: {"image": change(values["image"])})
    words = "what apply writes as 'image' must have the 2 rows of the batch"
    check_said(lambda: made().apply({}, {}, {"image": torch.zeros(2, 3, 8, 8)}), words, got)
