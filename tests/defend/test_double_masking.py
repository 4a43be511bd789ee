"""Double masking against the algorithms of its paper, by loops, and its certificate by attack."""

import itertools

import numpy as np
import pytest
import torch
from cases import TinyClassifier, noise
from torch import Tensor, nn

import fpatch
from fpatch import defend, infer, random
from fpatch.defend._masks import covering_masks

SIZE = 24


class Votes(nn.Module):
    """The color of most squares of 4 x 4 pixels, where one that is blue outweighs all others."""

    def forward(self, images: Tensor) -> Tensor:
        squares = (20 * torch.nn.functional.avg_pool2d(images, 4) - 15).clamp(min=0)
        return squares.mean((-1, -2)) * torch.tensor([1.0, 1.0, 40.0])


def masks_of_the_paper(n: int, p: int, k: int) -> list[tuple[int, int]]:
    """Xiang et al. (2022), section 3.2: stride, side and start of the masks along an axis."""
    stride = int(np.ceil((n - p + 1) / k))
    side = p + stride - 1
    starts = {i * stride for i in range((n - side) // stride + 1)} | {n - side}
    return [(start, start + side) for start in sorted(starts)]


@pytest.mark.parametrize(
    ("n", "p", "k"), [(24, 5, 3), (24, 5, 6), (25, 24, 4), (9, 9, 3), (224, 39, 6), (7, 1, 32)]
)
def test_one_mask_covers_a_patch_anywhere(n, p, k):
    masks = covering_masks((n, 11), (p, 3), k)
    assert [(m.y, m.y + m.height) for m in masks][:: len(masks_of_the_paper(11, 3, k))] == masks_of_the_paper(
        n, p, k
    )
    rows = {(m.y, m.y + m.height) for m in masks}
    assert all(any(low <= t and t + p <= high for low, high in rows) for t in range(n - p + 1))
    assert len(rows) <= k
    assert all(0 <= low < high <= n for low, high in rows)


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(
        ValueError, match=r"patch_px must be within the image of \(9, 8\) pixels, got \(10, 2\)"
    ):
        covering_masks((9, 8), (10, 2), 3)


def hidden(image: np.ndarray, *windows: tuple[slice, slice]) -> np.ndarray:
    image = image.copy()
    for rows, columns in windows:
        image[:, rows, columns] = 0.5
    return image


def windows_of(patch: tuple[int, int], k: int) -> list[tuple[slice, slice]]:
    rows, columns = ([slice(*m) for m in masks_of_the_paper(SIZE, p, k)] for p in patch)
    return list(itertools.product(rows, columns))


def label_of(model: nn.Module, image: np.ndarray) -> int:
    with torch.no_grad():
        return int(model(torch.from_numpy(image)[None]).argmax())


def algorithm_1(model: nn.Module, image: np.ndarray, masks: list) -> tuple[int, str]:
    """The answer of the defense for one image, and the case that gave it."""

    def predict(image: np.ndarray) -> tuple[int, list]:
        labels = [label_of(model, hidden(image, m)) for m in masks]
        most = int(np.bincount(labels).argmax())
        return most, [(m, label) for m, label in zip(masks, labels, strict=True) if label != most]

    most, disagreeing = predict(image)
    if not disagreeing:
        return most, "agree"
    for mask, label in disagreeing:
        if not predict(hidden(image, mask))[1]:
            return label, "minority"
    return most, "majority"


def algorithm_2(model: nn.Module, image: np.ndarray, label: int, masks: list) -> bool:
    return all(label_of(model, hidden(image, a, b)) == label for a in masks for b in masks)


def make_images(num: int) -> Tensor:
    """Squares of two or three colors in random shares, some with a strong patch over them."""
    images = []
    for i in range(num):
        key = random.fold_in(random.key(5), i)
        share = random.uniform(random.fold_in(key, "share"), ())
        squares = random.uniform(random.fold_in(key, "squares"), (6, 6)) < 0.1 + 0.9 * share
        image = torch.stack([squares, ~squares, torch.zeros(6, 6)]).float()
        image = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
        if i % 2:
            y, x = random.randint(random.fold_in(key, "place"), (2,), 0, SIZE - 8).tolist()
            image[:, y : y + 8, x : x + 8] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
        images.append(image)
    return torch.stack(images)


@pytest.mark.parametrize(("model", "patch", "k"), [
    (Votes().eval(), (8, 8), 3), (Votes().eval(), (3, 9), 4), (TinyClassifier(4), (6, 6), 3),
])  # fmt: skip
def test_answers_and_certificates_are_those_of_the_paper(model, patch, k):
    images = make_images(20)
    masks = windows_of(patch, k)
    logits = defend.double_masking(model, patch, k).apply({}, {}, {"image": images})["logits"]
    expected = [algorithm_1(model, image, masks) for image in images.numpy()]
    assert logits.argmax(-1).tolist() == [label for label, _ in expected]
    target = torch.tensor([label for label, _ in expected])
    found = defend.certify(model, images, target, patch, k)
    labels = [
        algorithm_2(model, image, int(t), masks) for image, t in zip(images.numpy(), target, strict=True)
    ]
    assert found.tolist() == labels
    if isinstance(model, Votes):
        assert {case for _, case in expected} == {"agree", "minority", "majority"}
        assert 0 < sum(labels) < 20


def test_no_patch_changes_a_certified_answer():
    """Theorem 1, by patches of one color and of noise at every place of certified images."""
    model, patch, k = Votes().eval(), (6, 6), 4
    images = make_images(80)[::2]
    target = model(images).argmax(-1)
    certified = defend.certify(model, images, target, patch, k)
    images, target = images[certified], target[certified]
    assert len(images) >= 3
    stage = defend.double_masking(model, patch, k)
    fooled = 0
    for y, x in itertools.product(range(0, SIZE - 5, 3), repeat=2):
        for content in (*torch.eye(3)[:, :, None, None], noise("patch of an attack", 3, 6, 6)):
            attacked = images.clone()
            attacked[:, :, y : y + 6, x : x + 6] = content
            found = stage.apply({}, {}, {"image": attacked})["logits"].argmax(-1)
            assert torch.equal(found, target), (y, x)
            fooled += int((model(attacked).argmax(-1) != target).sum())
    assert fooled > 10
    wrong = (target + 1) % 3
    assert not defend.certify(model, images, wrong, patch, k).any()


def test_a_patch_that_fools_the_classifier_is_removed():
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, 0, :20], image[:, 1, 20:] = 1.0, 1.0
    image[:, :, 4:12, 8:16] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    model = Votes().eval()
    assert model(image).argmax() == 2
    assert defend.double_masking(model, (8, 8), 6).apply({}, {}, {"image": image})["logits"].argmax() == 0


def test_an_answer_that_is_not_finite_is_passed_on():
    class Broken(Votes):
        def forward(self, images: Tensor) -> Tensor:
            bad = images[:, :1, :1, :1].flatten(1) == 0.25
            return torch.where(bad, torch.nan, super().forward(images))

    images = make_images(3)
    images[1, 0, 0, 0] = 0.25
    logits = defend.double_masking(Broken().eval(), (8, 8), 3).apply({}, {}, {"image": images})["logits"]
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    target = Votes()(images).argmax(-1)
    assert not defend.certify(Broken().eval(), images, target, (8, 8), 3)[1]


def test_an_attack_can_be_trained_through_it():
    model = TinyClassifier(3)
    images = noise("to attack", 4, 3, SIZE, SIZE).requires_grad_()
    stages = {
        "victim": defend.double_masking(model, (6, 6), 2),
        "plain": fpatch.node(infer.classifier(model), writes={"logits": "plain"}),
    }
    batch = {"image": images, "image_id": torch.arange(4), "draw": torch.zeros(4, dtype=torch.int64)}
    out, _ = fpatch.pipeline(stages)({}, random.key(0), batch)
    out["logits"].square().sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0).flatten(1).any(1).all())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: defend.double_masking(m, (3, 0)), r"double_masking\(patch_px\) must be at least 1, got 0"),
        (lambda m: defend.double_masking(m, (3, 3), 1), r"num_masks\) must be at least 2, got 1"),
        (lambda m: defend.double_masking(m, (3, 3), fill=2.0), r"fill\) must be between 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    model = TinyClassifier(1)
    with pytest.raises(ValueError, match=message):
        make(model)
