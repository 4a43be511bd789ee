"""Planted mistakes: a small sound study, each time with one mistake, which the doctor must name.

The victim tells red, green and dark objects apart. Another order of channels or labels, another scale of the
input and another number of classes show in its answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from study_fixture import load_tiny, make_study
from torch import Tensor, nn

from fpatch.core.resource import define_loader
from fpatch.data import write_image
from fpatch.demo.tiny import tiny_study
from fpatch.doctor.examine import Diagnosis, examine
from fpatch.doctor.scales import MEAN, STD
from fpatch.graph.stage import define, deterministic
from fpatch.runs.training import train
from fpatch.study.config import load_study

COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "dark": (0.1, 0.1, 0.1)}
SPLITS = ("train",) * 6 + ("validation",) * 6 + ("test",) * 6
STUDY = """
name = "planted"
[data]
placements = "placements.csv"
objects = "objects.csv"
size = [24, 32]
classes = ["red", "green", "dark"]
[pipeline.pixels]
stage = "create.pixels"
shapes = {tag = [3, 8, 8]}
[pipeline.smooth]
stage = "losses.total_variation"
[pipeline.implant]
stage = "implant.warp"
[pipeline.exposure]
stage = "compose.exposure"
stops = [-0.05, 0.05]
[pipeline.victim]
stage = "infer.classifier"
model = {loader = "test_planted:hues", arguments = {fault = "none"}}
[pipeline.misclassify]
stage = "losses.misclassify"
[pipeline.hit]
stage = "metrics.class_hit"
phases = ["eval"]
[objective]
weights = {misclassify = 1.0, total_variation = 0.1}
[optimizer]
learning_rate = 0.1
[train]
num_steps = 4
batch_size = 4
[log]
tensorboard = false
mlflow = false
"""


class Hues(nn.Module):
    """Red and green by the mean of their channels, dark otherwise; with one fault by its name."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.head = nn.Linear(3, 3)
        weight, bias = torch.tensor([[40.0, 0, 0], [0, 40, 0], [0, 0, 0]]), torch.tensor([-15.2, -15.2, 0])
        self.head.weight.data, self.head.bias.data = weight, bias
        if fault == "not loaded":
            self.head.weight.data.zero_()
            self.head.bias.data = torch.tensor([0.1, 0.0, 0.0])

    def forward(self, images: Tensor) -> Tensor:
        std, mean = (torch.tensor(v)[:, None, None] for v in (STD, MEAN))
        seen = {
            "divides by 255": lambda x: x / 255,
            "multiplies by 255": lambda x: x * 255,
            "expects normalized images": lambda x: x * std + mean,
            "expects BGR": lambda x: x.flip(1),
            "detaches": lambda x: x.detach(),
            "mixes rows": lambda x: x + 0.5 * (x - x.mean(0)),
        }.get(self.fault, lambda x: x)(images)
        logits = self.head(seen.mean((2, 3)))
        answer = {
            "answers probabilities": lambda z: z.softmax(-1),
            "draws random numbers": lambda z: z + 0.1 * torch.randn_like(z),
            "swaps two labels": lambda z: z[:, [1, 0, 2]],
            "counts a background": lambda z: torch.cat([torch.full_like(z[:, :1], -20.0), z], 1),
            "answers a fourth class": lambda z: torch.cat([z, torch.full_like(z[:, :1], -20.0)], 1),
        }.get(self.fault, lambda z: z)
        return answer(logits)


def load_hues(fault: str) -> nn.Module:
    model = Hues(fault)
    return model.train() if fault == "in training mode" else model.eval()


class Sigmoid(nn.Module):
    """The tiny detector with probabilities in place of log-odds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        answer = self.model(images)
        return {**answer, "logits": answer["logits"].sigmoid()}


hues = define_loader("hues", load_hues)
sigmoid = define_loader("sigmoid", lambda weights: Sigmoid(load_tiny(weights)).eval())


@dataclass(frozen=True)
class Frozen:
    """None."""


def apply_frozen(config: Frozen, patch_params: Any, sample: Any, values: Any) -> Any:
    return {"patch": {name: patch.detach() for name, patch in values["patch"].items()}}


frozen = define("frozen", Frozen, deterministic, apply_frozen, reads=("patch",), writes=("patch",))


def write_planted(folder: Path) -> Path:
    """Write eighteen images of an object of one of three colors, their tables and a sound study."""
    places, objects = ["image,patch,split,xmin,ymin,xmax,ymax"], ["image,label,split,xmin,ymin,xmax,ymax"]
    for i, split in enumerate(SPLITS):
        label, x, y = list(COLORS)[i % 3], 2 + i % 5, 1 + i % 4
        scene = torch.full((3, 24, 32), 0.3)
        scene[:, y : y + 16, x : x + 20] = torch.tensor(COLORS[label])[:, None, None]
        write_image(folder / f"{i}.png", scene)
        places.append(f"{i}.png,tag,{split},{x + 4},{y + 3},{x + 14},{y + 13}")
        objects.append(f"{i}.png,{label},{split},{x},{y},{x + 20},{y + 16}")
    (folder / "placements.csv").write_text("\n".join(places))
    (folder / "objects.csv").write_text("\n".join(objects))
    (folder / "study.toml").write_text(STUDY)
    return folder / "study.toml"


class Mistake(NamedTuple):
    """A mistake, and the finding that names it.

    Attributes:
        level: The level of the finding.
        where: Its node or setting.
        what: A part of its sentence that names the cause.
        overrides: Settings of the study that make the mistake.
        edit: A text of the study file, and the mistake in its place.
        detector: Whether the study is that of the tiny detector.
    """

    level: str
    where: str
    what: str
    overrides: Mapping[str, Any] = {}
    edit: tuple[str, str] = ("", "")
    detector: bool = False


def faulty(level: str, what: str, where: str = "victim") -> Mistake:
    return Mistake(level, where, what)


FREEZE = '[pipeline.frozen]\nstage = "test_planted:frozen"\n'
MISTAKES = {
    "detaches": faulty("error", "'misclassify' depends on its answer, but no gradient of the term reaches"),
    "draws random numbers": faulty("error", "answers the same images differently the second time"),
    "divides by 255": faulty("error", "in 6 if its input is multiplied by 255"),
    "multiplies by 255": faulty("warning", "if its input is divided by 255"),
    "expects normalized images": faulty("warning", "if its input is normalized by the mean and deviation"),
    "expects BGR": faulty("warning", "if its input is in the order BGR"),
    "answers probabilities": faulty("warning", "they are probabilities, and logits are expected"),
    "answers a fourth class": faulty("warning", "it answers 4 classes, and the data name 3"),
    "swaps two labels": faulty("error", "'red' is answered as 'green' (6 of 6), 'green' as 'red' (6 of 6)"),
    "counts a background": faulty("error", "those of the data plus 1: 'red' is answered as 'green' (6 of 6)"),
    "not loaded": faulty("error", "it answers 'red' for each of 18 objects, and for a black"),
    "mixes rows": faulty("warning", "if others are in the batch: it mixes rows"),
    "in training mode": faulty("error", "is in training mode", "train, validation, test"),
    "a step without a mark": Mistake(
        "error", "optimizer", "less than half a level of 8 bits", {"optimizer.learning_rate": 1e-5}
    ),
    "a step that saturates": Mistake(
        "warning", "optimizer", "of the patch 'tag' black or white", {"optimizer.learning_rate": 100.0}
    ),
    "smoothness alone": Mistake(
        "warning", "objective.weights", "the patch follows those alone",
        {"objective.weights.total_variation": 1e5},
    ),
    "a negative weight": Mistake(
        "warning", "objective.weights", "makes a term of negative weight larger",
        {"objective.weights.misclassify": -1.0},
    ),
    "overexposed": Mistake(
        "error", "exposure", "of the image is black or white after it",
        {"pipeline.exposure.stops": [9.0, 10.0]},
    ),
    "a place of another form": Mistake(
        "warning", "implant", "are 1.00 times as wide as high (median), and the patch 4.00 times",
        edit=("[3, 8, 8]", "[3, 4, 16]"),
    ),
    "a victim of the clean image": Mistake(
        "error", "victim", "let it read 'image'",
        edit=('stage = "infer.classifier"', 'stage = "infer.classifier"\nreads = {image = "scene"}'),
    ),
    "a patch that is detached": Mistake(
        "error", "frozen", "its outputs do not depend on its inputs by autograd",
        edit=("[pipeline.implant]", f"{FREEZE}[pipeline.implant]"),
    ),
    "a targeted loss measured untargeted": Mistake(
        "warning", "hit", "set pipeline.hit.goal = 'dark'", {"pipeline.misclassify.target": "dark"}
    ),
    "a detector of probabilities": Mistake(
        "error", "victim", "all its log-odds lie in 0..1",
        edit=("study_fixture:tiny", "test_planted:sigmoid"), detector=True,
    ),
    "rows without an object": Mistake(
        "warning", "vanish", "3 of 5 training images (60 %) have no object", detector=True
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def detected(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("detected"))


def plant(path: Path, name: str, mistake: Mistake) -> Diagnosis:
    """Examine the study with one mistake."""
    text = path.read_text()
    old, new = mistake.edit
    if not mistake.detector and old == "" and not mistake.overrides:
        old, new = 'fault = "none"', f'fault = "{name}"'
    assert old in text
    changed = path.with_name("mistaken.toml")
    changed.write_text(text.replace(old, new, 1) if old else text)
    if name == "rows without an object":
        lines = path.with_name("objects.csv").read_text().splitlines()
        kept = [
            line for line in lines if not line.startswith(("photograph-01", "photograph-02", "photograph-04"))
        ]
        path.with_name("fewer.csv").write_text("\n".join(kept) + "\n")
        changed.write_text(text.replace('objects = "objects.csv"', 'objects = "fewer.csv"'))
    return examine(load_study(changed, dict(mistake.overrides)))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_named(planted, detected, name):
    mistake = MISTAKES[name]
    findings = plant(detected if mistake.detector else planted, name, mistake).findings
    named = [f for f in findings if mistake.what in f.what]
    assert [(f.level, f.where) for f in named] == [(mistake.level, mistake.where)], findings


def test_twenty_mistakes_are_planted():
    assert len(MISTAKES) >= 20


def test_sound_studies_have_no_finding(planted, detected, tmp_path):
    for study in (load_study(planted), load_study(detected), tiny_study(tmp_path)):
        assert examine(study).findings == (), study.name


def test_it_is_counted_how_good_the_victim_is_by_split_and_class(planted):
    facts = {f.split: f for f in examine(load_study(planted)).clean}
    assert list(facts) == ["train", "validation", "test"]
    assert all((f.images, f.total, f.all) == (6, 6, (6, 6)) for f in facts.values())
    assert facts["test"].classes == {"red": (2, 2), "green": (2, 2), "dark": (2, 2)}
    mistaken = plant(planted, "expects BGR", MISTAKES["expects BGR"])
    assert mistaken.clean[2].classes == {"red": (0, 2), "green": (2, 2), "dark": (2, 2)}


def test_a_large_split_is_examined_in_part_and_so_is_a_slow_victim(planted, monkeypatch):
    monkeypatch.setattr("fpatch.doctor.clean.CLEAN_ROWS", 3)
    facts = examine(load_study(planted), num_rows=3).clean
    assert [(f.images, f.total) for f in facts] == [(3, 6)] * 3
    assert all(set(f.classes) == set(COLORS) for f in facts), "any first part holds all classes"
    monkeypatch.setattr("fpatch.doctor.clean.CLEAN_ROWS", 256)
    monkeypatch.setattr("fpatch.doctor.clean.CLEAN_SECONDS", 0.0)
    assert [f.images for f in examine(load_study(planted), num_rows=4).clean] == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("detaches", "node 'victim': the loss term 'misclassify' depends on its answer, but no gradient"),
        (
            "a patch that is detached",
            "node 'misclassify': the loss term 'misclassify' reads a victim, but does not",
        ),
    ],
)
def test_training_is_refused_where_a_victims_term_cannot_reach_the_patch(planted, name, what):
    plant(planted, name, MISTAKES[name])
    path = planted.with_name("mistaken.toml")
    with pytest.raises(ValueError, match="before training, on the first images") as error:
        train(load_study(path, {"log.runs": str(planted.parent / "runs")}))
    assert what in str(error.value)
    assert not (planted.parent / "runs").exists()


@pytest.mark.slow
def test_the_untouched_demo_has_no_error_and_no_warning(tmp_path):
    from fpatch.core.progress import silent
    from fpatch.demo.study import QUICK, prepare_scenes, prepare_study

    scenes = prepare_scenes(QUICK, 0, silent)
    diagnosis = examine(load_study(prepare_study(tmp_path, "demo", scenes, QUICK, False, 0, 0, silent)))
    assert [f for f in diagnosis.findings if f.level != "note"] == []
    assert all(f.all.right > 0.8 * f.all.count for f in diagnosis.clean)
    assert all(f.images >= 16 for f in diagnosis.clean)


def test_classes_in_which_the_victim_is_worst_stand_in_the_table(planted):
    from fpatch.cli.doctor_tables import clean_table

    mistaken = plant(planted, "expects BGR", MISTAKES["expects BGR"])
    table = clean_table(mistaken, num_classes=1)
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [
        ["red", "2 others, in which it is better", "all"],
        *([["0 of 2", "", "4 of 6"]] * 3),
    ]


@pytest.mark.parametrize(
    ("truth", "said", "what"),
    [
        ("aabbcc", "aabbcc", None),
        ("aabbcc", "bbaacc", "another order than data.classes: 'a' is answered as 'b' (2 of 2), 'b' as 'a'"),
        (
            "aaabbbccc",
            "bbaccaaab",
            "'a' is answered as 'b' (2 of 3), 'b' as 'c' (2 of 3), 'c' as 'a' (2 of 3)",
        ),
        ("aabbcc", "bbccdd", "its labels are those of the data plus 1: 'a' is answered as 'b'"),
        ("bbccdd", "aabbcc", "its labels are those of the data minus 1: 'b' is answered as 'a'"),
        ("aabbcc", "aacccc", None),  # a poor victim: one class is taken for another
        ("aabb", "----", None),  # nothing is answered
        ("abc", "bca", None),  # one image of a class is no evidence
        ("aaaa", "bbbb", "'a' is answered as 'b' (4 of 4): its labels may have another order"),
        ("aaaabbbb", "bbaabbbb", None),
    ],
)
def test_another_order_of_labels_is_said_by_name(truth, said, what):
    from fpatch.doctor.labels import find_order

    labels = [torch.tensor([ord(c) - ord("a") if c != "-" else -1 for c in word]) for word in (truth, said)]
    found = find_order(*labels, names="abcd")
    assert found is None if what is None else found is not None and what in found, found
