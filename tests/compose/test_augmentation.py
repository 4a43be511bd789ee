"""Every two-dimensional augmentation of kornia as a stage: the laws that matter to it, and its labels."""

import inspect
import io
import json

import kornia.augmentation
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cases import HEIGHT, NUM_ROWS, WIDTH, make_inputs, noise
from laws import assert_equal, take
from torchvision.transforms import v2
from typecheck import unchecked

from fpatch import compose, implant, random
from fpatch.compose.augmentation import LARGE, NOT_DIFFERENTIABLE, REFUSED, UNTRACKED
from fpatch.graph.build import build
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.graph.samples import from_columns, override, to_columns

KEY = random.key(11)
ARGUMENTS = {
    "CenterCrop": {"size": [64, 80]},
    "ColorJiggle": {"brightness": 0.2, "contrast": 0.2, "hue": 0.1},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "hue": 0.1},
    "LongestMaxSize": {"max_size": 100},
    "PadTo": {"size": [120, 140]},
    "RandomAffine": {"degrees": 20.0, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10.0},
    "RandomBrightness": {"brightness": [0.7, 1.3]},
    "RandomContrast": {"contrast": [0.7, 1.3]},
    "RandomCrop": {"size": [HEIGHT, WIDTH], "padding": 9},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.1]},
    "RandomGamma": {"gamma": [0.5, 2.0]},
    "RandomGaussianBlur": {"kernel_size": [5, 5], "sigma": [0.5, 1.5]},
    "RandomMotionBlur": {"kernel_size": 5, "angle": 35.0, "direction": 0.5},
    "RandomPosterize": {"bits": [3, 5]},
    "RandomResizedCrop": {"size": [HEIGHT, WIDTH]},
    "RandomRotation": {"degrees": 20.0},
    "RandomRotation90": {"times": [-1, 2]},
    "RandomShear": {"shear": 20.0},
    "RandomTranslate": {"translate_x": [-0.2, 0.2], "translate_y": [-0.1, 0.1]},
    "Resize": {"size": [60, 200]},
    "SmallestMaxSize": {"max_size": 80},
}
CLASSES = {
    name: kind
    for name, kind in vars(kornia.augmentation).items()
    if inspect.isclass(kind) and "Base" not in name and not name.endswith("3D")
    if issubclass(kind, (kornia.augmentation.AugmentationBase2D, kornia.augmentation.MixAugmentationBaseV2))
}
STAGED = sorted(set(CLASSES) - set(REFUSED))
KEEPS_SIZE = [
    n for n in STAGED if n not in ("CenterCrop", "LongestMaxSize", "PadTo", "Resize", "SmallestMaxSize")
]
GEOMETRIC = [n for n in STAGED if issubclass(CLASSES[n], kornia.augmentation.GeometricAugmentationBase2D)]


def make(name: str, **others):
    arguments = ARGUMENTS.get(name, {}) | others
    if "p" not in inspect.signature(CLASSES[name]).parameters:
        arguments.pop("p", None)
    return compose.augmentation(name, arguments)


def inputs(stage, **changes):
    d = stage.definition
    names = {"image_id", "draw", *d.reads, *(set(d.optional) - {"scene"}), *changes}
    return {name: value for name, value in make_inputs(**changes).items() if name in names}


def picture(name: str) -> str:
    return "scene" if name in (*GEOMETRIC, *UNTRACKED) else "image"


def test_these_are_all_of_them():
    assert len(CLASSES) == 62
    assert set(REFUSED) < set(CLASSES)
    assert len(STAGED) == 53


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why(name):
    with pytest.raises(ValueError, match=f"augmentation\\('{name}'\\) is refused: it"):
        compose.augmentation(name)


@pytest.mark.parametrize("name", STAGED)
def test_every_augmentation_keeps_the_laws(name):
    """Draws by key, photograph and use alone; rows apart; replay through a table, to the bit."""
    stage = make(name, p=1.0)
    batch = inputs(stage)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    out, sample = stage({}, KEY, batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_equal(stage({}, KEY, batch), (out, sample))
    assert set(sample) == set(stage.definition.fields)
    assert sum(value[0].numel() for value in sample.values()) <= 32

    order = [2, 0, 1]
    shuffled = take(batch, order)
    assert_equal(stage.sample(KEY, shuffled), take(sample, order))
    assert_equal(stage.apply({}, take(sample, order), shuffled), take(out, order))
    alone = stage({}, KEY, take(batch, [1]))
    assert_equal(alone, (take(out, [1]), take(sample, [1])))

    file = io.BytesIO()
    pq.write_table(pa.table({n: pa.array(c) for n, c in to_columns(sample).items()}), file)
    table = pq.read_table(file)
    held = from_columns({n: table[n].to_numpy() for n in table.column_names})
    assert_equal(held, sample)
    assert_equal(stage.apply({}, held, batch), out)

    found = out[picture(name)]
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, batch[picture(name)])


@pytest.mark.parametrize("name", STAGED)
def test_rows_that_are_off_stay_as_they_are(name):
    stage = make(name, p=0.5 if name in KEEPS_SIZE else 1.0)
    batch = inputs(stage)
    sample = override(stage.sample(KEY, batch), {"on": [False, True, False] if name in KEEPS_SIZE else False})
    out = stage.apply({}, sample, batch)
    assert_equal(take(out, [0, 2]), take(batch, [0, 2]))


@pytest.mark.parametrize("name", STAGED)
def test_gradients_reach_the_image_or_are_declared(name):
    stage = make(name, p=1.0)
    batch = inputs(stage)
    image = batch[picture(name)].clone().requires_grad_()
    out = stage.apply({}, stage.sample(KEY, batch), {**batch, picture(name): image})[picture(name)]
    gradient = torch.zeros_like(image)
    if out.requires_grad:
        (gradient,) = torch.autograd.grad((out * noise("weights", *out.shape)).sum(), image)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient != 0).any()) == stage.definition.traits.gradient == (name not in NOT_DIFFERENTIABLE)


def test_a_slow_clahe_has_a_gradient():
    stage = make("RandomClahe", slow_and_differentiable=True, p=1.0)
    image = make_inputs()["image"].requires_grad_()
    out, _ = stage({}, KEY, inputs(stage, image=image))
    (gradient,) = torch.autograd.grad((out["image"] * noise("weights", *out["image"].shape)).sum(), image)
    assert stage.definition.traits.gradient
    assert bool((gradient != 0).any())


def ramp() -> torch.Tensor:
    """An image that holds at each pixel where it is, and that it is inside."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return torch.stack([x / WIDTH, y / HEIGHT, torch.ones_like(x)]).expand(NUM_ROWS, -1, -1, -1)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_quads_and_boxes_move_as_the_pixels_do(name):
    """Each moved pixel says where it came from; a corner put there must arrive at it."""
    stage = make(name, p=1.0)
    batch = inputs(stage, scene=ramp())
    sample = stage.sample(KEY, batch)
    scene = stage.apply({}, sample, batch)["scene"]
    size = torch.tensor([WIDTH, HEIGHT])
    came_from = scene[:, :2].movedim(1, -1) * size
    inside = (scene[:, 2] > 0.9999) & ((came_from > 2) & (came_from < size - 2)).all(-1)
    for row in range(NUM_ROWS):
        i, j = inside[row].nonzero().unbind(-1)
        assert len(i) > 1000
        some = torch.arange(40) * (len(i) // 41)
        quads = came_from[row, i[some], j[some]].reshape(1, 10, 4, 2).expand(NUM_ROWS, -1, -1, -1)
        expected = torch.stack([j[some] + 0.5, i[some] + 0.5], dim=-1).reshape(10, 4, 2)
        there = {"quads": quads, "quad_valid": torch.ones(NUM_ROWS, 10, dtype=torch.bool)}
        out = stage.apply({}, sample, {**batch, **there})
        torch.testing.assert_close(out["quads"][row], expected, rtol=0, atol=0.01)
        assert bool(out["quad_valid"].all())

    boxes = torch.tensor([[30.0, 20.0, 90.0, 60.0]]).expand(NUM_ROWS, 1, 4)
    corners = torch.tensor([[30.0, 20.0], [90.0, 20.0], [90.0, 60.0], [30.0, 60.0]]).expand(NUM_ROWS, 1, 4, 2)
    there = {"quads": corners, "quad_valid": torch.ones(NUM_ROWS, 1, dtype=torch.bool), "boxes": boxes}
    out = stage.apply({}, sample, {**batch, **there, "box_valid": torch.ones(NUM_ROWS, 1, dtype=torch.bool)})
    h, w = out["scene"].shape[-2:]
    hull = torch.cat([out["quads"].amin(-2), out["quads"].amax(-2)], dim=-1)
    inside = torch.stack([hull[..., k].clamp(0, s) for k, s in enumerate((w, h, w, h))], dim=-1)
    torch.testing.assert_close(out["boxes"], inside)


def test_it_is_what_kornia_does_with_these_parameters():
    """The sample alone, handed to kornia in one call, gives the image."""
    stage = make("RandomAffine", p=1.0)
    batch = inputs(stage)
    out, sample = stage({}, KEY, batch)
    module = kornia.augmentation.RandomAffine(20.0, (0.1, 0.1), (0.8, 1.2), 10.0, p=1.0)
    params = {n: sample[n] for n in ("translations", "center", "scale", "angle", "shear_x", "shear_y")}
    params |= {"batch_prob": torch.ones(3), "forward_input_shape": torch.tensor(batch["scene"].shape)}
    torch.testing.assert_close(out["scene"], module(batch["scene"], params=params), rtol=0, atol=1e-5)

    stage = make("ColorJitter", brightness=0.3, hue=0.2, saturation=0.4, p=1.0)
    batch = inputs(stage)
    out, sample = stage({}, KEY, batch)
    assert len({tuple(order) for order in sample["order"].tolist()}) > 1
    for row in range(NUM_ROWS):
        module = kornia.augmentation.ColorJitter(brightness=0.3, hue=0.2, saturation=0.4, p=1.0)
        params = {n: v[row : row + 1] for n, v in sample.items() if n.endswith("_factor")}
        params |= {"order": sample["order"][row], "batch_prob": torch.ones(1)}
        expected = module(batch["image"][row : row + 1], params=params)
        torch.testing.assert_close(out["image"][row : row + 1], expected, rtol=0, atol=1e-6)


def test_a_field_of_noise_comes_back_from_its_seed():
    stage = make("RandomGaussianNoise", std=0.1, p=1.0)
    gray = torch.full((NUM_ROWS, 3, HEIGHT, WIDTH), 0.5)
    batch = inputs(stage, image=gray)
    out, sample = stage({}, KEY, batch)
    assert "gaussian_noise" not in sample
    assert "gaussian_noise" in LARGE
    for row, seed in enumerate(sample["seed"].tolist()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = kornia.augmentation.RandomGaussianNoise(std=0.1, p=0.5)
            field = module.forward_parameters((1, 3, HEIGHT, WIDTH))["gaussian_noise"]
        torch.testing.assert_close(out["image"][row], (0.5 + field[0]).clamp(0, 1), rtol=0, atol=1e-6)
    assert abs(float((out["image"] - 0.5).std()) - 0.1) < 0.002


@pytest.mark.parametrize("arguments", [{"p": 0.3}, {"p": 0.6, "p_batch": 0.5}])
def test_it_is_applied_with_probability_p(arguments):
    stage = make("RandomHorizontalFlip" if "p_batch" in arguments else "RandomInvert", **arguments)
    batch = {"image_id": torch.arange(500), "draw": torch.zeros(500, dtype=torch.int64)}
    on = stage.sample(KEY, {**batch, picture(stage.config.name): torch.zeros(500, 3, 2, 2)})["on"]
    assert abs(float(on.float().mean()) - 0.3) < 4 * (0.3 * 0.7 / 500) ** 0.5


def test_a_logged_value_can_be_overridden():
    stage = make("RandomRotation", p=1.0)
    batch = inputs(stage)
    sample = override(stage.sample(KEY, batch), {"degrees": 0.0})
    torch.testing.assert_close(stage.apply({}, sample, batch)["quads"], batch["quads"], equal_nan=True)


@pytest.mark.parametrize("name", ["RandomPlasmaShadow", "RandomCrop", "RandomBrightness"])
def test_an_image_of_another_size_is_refused(name):
    stage = make(name)
    batch = inputs(stage)
    sample = stage.sample(KEY, batch)
    other = {**batch, picture(name): batch[picture(name)][..., :-1]}
    with pytest.raises(ValueError, match=r"drawn for images of \(97, 131\).* has \(97, 130\); draw again"):
        stage.apply({}, sample, other)


def test_a_new_size_for_some_rows_only_is_refused():
    stage = make("Resize", p=0.5)
    batch = inputs(stage)
    sample = override(stage.sample(KEY, batch), {"on": [True, False, True]})
    with pytest.raises(
        ValueError, match=r"changes the size of some rows only; give the size \(97, 131\) or p=1"
    ):
        stage.apply({}, sample, batch)


def test_the_size_is_that_of_the_scene_or_given():
    light = make("RandomPlasmaShadow", p=1.0)
    batch = {n: v for n, v in make_inputs().items() if n not in ("image", "detections", "logits")}
    whole = pipeline({"implant": implant.warp(names=("hood", "roof")), "light": light})
    out, sample = whole({}, KEY, batch)
    assert sample["light"]["size_px"].tolist() == [[HEIGHT, WIDTH]] * NUM_ROWS
    assert out["image"].shape == batch["scene"].shape

    wiring = {"reads": {"scene": "image"}, "writes": {"scene": "image"}}
    turn = compose.augmentation("RandomRotation", {"degrees": 20.0, "p": 1.0}, size=(HEIGHT, WIDTH))
    whole = pipeline({"implant": implant.warp(names=("hood", "roof")), "turn": node(turn, **wiring)})
    out, sample = whole({}, KEY, batch)
    clean, _ = pipeline({"implant": implant.warp(names=("hood", "roof"))})({}, KEY, batch)
    expected = turn.apply({}, sample["turn"], {**clean, "scene": clean["image"]})
    assert_equal(out["image"], expected["scene"])
    assert_equal(out["boxes"], expected["boxes"])
    assert_equal(out["scene"], batch["scene"])
    unsized = compose.augmentation("RandomRotation", {"degrees": 20.0})
    whole = pipeline({"implant": implant.warp(names=("hood", "roof")), "turn": node(unsized, **wiring)})
    with pytest.raises(ValueError, match=r"holds no 'scene'; give size=\(height, width\)"):
        whole.sample(KEY, batch)


def test_the_build_fails_where_boxes_would_stay_behind():
    parts = {"bend": make("RandomElasticTransform"), "implant": implant.warp(names=("hood", "roof"))}
    with pytest.raises(ValueError, match="moves the pixels but not 'quads', which 'implant' reads"):
        pipeline(parts)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("RandomPlankianJitter", {}, "did you mean 'RandomPlanckianJitter'?"),
        ("RandomAffine3D", {}, "kornia has none of this name in 2-D"),
        ("RandomInvert", {"probability": 0.5}, "no argument 'probability'; known: "),
        ("RandomInvert", {"max_vals": 1.0}, "no argument 'max_vals'; did you mean 'max_val'?"),
        ("RandomAffine", {}, "degrees"),
        ("RandomInvert", {"same_on_batch": True}, "would tie rows together"),
        ("RandomResizedCrop", {"size": [8, 8], "align_corners": False}, "align_corners=False"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(name, arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", "\\?")) as caught:
        compose.augmentation(name, arguments)
    assert str(caught.value).startswith(f"augmentation({name!r})")


def test_a_compiler_leaves_kornia_as_it_is():
    stage = compose.augmentation("RandomGaussianNoise", arguments={"p": 0.7})
    batch = {"image": torch.rand(3, 3, 32, 40), "image_id": torch.arange(3), "draw": torch.zeros(3).long()}
    sample = stage.sample(random.key(0), batch)

    def twice(image):
        return 2.0 * stage.apply({}, sample, {"image": image})["image"]

    assert torch.equal(torch.compile(twice, backend="aot_eager")(batch["image"]), twice(batch["image"]))


@pytest.mark.parametrize(
    ("made", "name", "arguments"),
    [
        (kornia.augmentation.RandomAffine(9.0, translate=(0.1, 0.2), p=0.7), "RandomAffine",
         {"degrees": 9.0, "translate": (0.1, 0.2), "p": 0.7}),
        (kornia.augmentation.ColorJitter(0.2, hue=0.1), "ColorJitter", {"brightness": 0.2, "hue": 0.1}),
        (kornia.augmentation.RandomHorizontalFlip(), "RandomHorizontalFlip", {}),
        (kornia.augmentation.RandomGaussianNoise(0.1, 0.2, p=1.0), "RandomGaussianNoise",
         {"mean": 0.1, "std": 0.2, "p": 1.0}),
        (kornia.augmentation.RandomResizedCrop((8, 8), resample="nearest"), "RandomResizedCrop",
         {"size": (8, 8), "resample": "NEAREST"}),
    ],
)  # fmt: skip
def test_an_object_of_kornia_gives_its_name_and_arguments(made, name, arguments):
    stage = compose.augmentation(made)
    assert stage == compose.augmentation(name, arguments)
    again = pipeline({"stage": stage}).config["stage"]
    assert build({"stage": json.loads(json.dumps(again))})["stage"].stage == stage
    drawn, expected = ({n: p for n, p in draw_once(m).items()} for m in (stage_module(stage), made))
    assert drawn.keys() == expected.keys()
    for parameter, value in expected.items():
        assert torch.equal(drawn[parameter], value), parameter


def stage_module(stage):
    return getattr(kornia.augmentation, stage.config.name)(**stage.config.arguments)


def draw_once(module):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return module.forward_parameters(torch.Size((2, 3, 32, 40)))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            kornia.augmentation.RandomPosterize(bits=3.0),
            "this RandomPosterize does not keep all its arguments; give them beside",
        ),
        (kornia.augmentation.RandomAffine, "got the class RandomAffine of kornia"),
        (v2.ColorJitter(), "got a ColorJitter of torchvision"),
        (
            kornia.augmentation.AugmentationSequential(kornia.augmentation.RandomAffine(5.0)),
            "give each augmentation a node of its own",
        ),
        (kornia.augmentation.RandomAffine(5.0, same_on_batch=True), "would tie rows together"),
    ],
)
def test_an_object_that_cannot_be_made_again_is_refused(made, words):
    with unchecked(), pytest.raises(ValueError, match=words):
        compose.augmentation(made)


def test_an_object_of_kornia_takes_no_further_arguments():
    with pytest.raises(ValueError, match="this RandomAffine has its arguments"):
        compose.augmentation(kornia.augmentation.RandomAffine(5.0), {"degrees": 3.0})
