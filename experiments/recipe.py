"""One recipe of a model with two heads, used for inference, for pictures, for training and for export.

    python experiments/recipe.py              # 40 epochs
    python experiments/recipe.py --quick      # 3 epochs: does it run?

The images are the handwritten digits of scikit-learn, 1,797 of 8 x 8 pixels. A network with batch statistics
and dropout answers which digit it is, and how much of the image is ink. Losses, metrics and pictures are
nodes of the same recipe, alive in the phases that need them:

- `inference`: the answers alone;
- `pictures`: the answers, and a picture of each image with the likeliest digits;
- `train`: the losses, with batch statistics and dropout from the keys of the rows;
- `validation`: the answers with stored statistics, and the metrics;
- `export`: an ONNX file for any number of images, compared with torch at two other numbers.

Numbers: the accuracy on 360 images that no step has seen, with a 95 % Wilson interval, and the mean absolute
error of the share of ink. No setting was chosen by them.

The folder `runs/<time>-recipe/` keeps the weights of each node, `recipe.md` (diagrams), `recipe.onnx`,
`recipe.json` and `answers.png`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpatch
from fpatch import graph, infer, losses, metrics, node, random, viz
from fpatch.cli.console import progress_bars, say

NUM_TEST = 360
DIGITS = tuple(map(str, range(10)))


def make_recipe() -> fpatch.Pipeline:
    """The model, its losses, metrics and pictures."""
    filters = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2))
    body = nn.Sequential(filters, nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.Flatten())
    parts = {
        "digit": infer.head(num_features=768, num_classes=10, dropout=0.3, seed=1),
        "ink": infer.head(num_features=768, num_classes=1, seed=2),
    }
    heads = {name: graph.module(part, trainable=True) for name, part in parts.items()}
    eyes = infer.normalizer(mean=[0.3] * 3, std=[0.38] * 3)
    return fpatch.pipeline(
        {
            "normalize": node(graph.module(eyes), reads=["image"], writes=["input"]),
            "body": node(graph.module(body, trainable=True), reads=["input"], writes=["features"]),
            "digit": node(heads["digit"], reads=["features"], writes=["logits"]),
            "ink": node(heads["ink"], reads=["features"], writes=["ink"]),
            "losses": {
                "digit": node(
                    losses.criterion("CrossEntropyLoss", {"label_smoothing": 0.05}),
                    reads={"input": "logits", "target": "target"},
                    writes=["wrong_digit"],
                    phases="train",
                ),
                "ink": node(
                    losses.criterion("SmoothL1Loss"),
                    reads={"input": "ink", "target": "share"},
                    writes=["wrong_ink"],
                    phases="train",
                ),
            },
            "hit": node(metrics.class_hit(), phases="eval"),
            "error": node(ink_error, reads=["ink", "share"], writes=["error"], phases="eval"),
            "bars": node(viz.class_bars(class_names=DIGITS, num_classes=3), phases=["pictures"]),
        }
    )


def ink_error(patch_params: Any, key: Tensor, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The absolute error of the share of ink."""
    return {"error": (batch["ink"] - batch["share"]).abs()[:, 0]}, {}


def load_digits() -> dict[str, Tensor]:
    """All images with their digits and shares of ink."""
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    gray = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return {
        "image": gray.expand(-1, 3, -1, -1).contiguous(),
        "target": torch.tensor(digits.target),
        "share": gray.flatten(1).mean(1, keepdim=True),
        "image_id": torch.arange(len(gray)),
        "draw": torch.zeros(len(gray), dtype=torch.int64),
    }


def take(batch: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {name: value[rows] for name, value in batch.items()}


def train(recipe: fpatch.Pipeline, data: dict[str, Tensor], epochs: int, batch_size: int = 64) -> Any:
    """Train both heads; the same step trains patches."""
    objective = fpatch.Objective(recipe.at("train"), {"wrong_digit": 1.0, "wrong_ink": 5.0})
    num = len(data["image_id"]) // batch_size
    settings = fpatch.Optimizer("adam", learning_rate=0.003, schedule="cosine")
    optimizer = fpatch.make_optimizer(settings, num_steps=epochs * num)
    state, step = (
        fpatch.make_state(objective, optimizer, random.key(0)),
        fpatch.make_step(objective, optimizer),
    )
    with progress_bars() as report:
        for epoch in range(epochs):
            order = random.permutation(random.fold_in(random.key(1), epoch), len(data["image_id"]))
            for rows in order[: num * batch_size].split(batch_size):
                state, info = step(state, take(data, rows))
            report("training", epoch + 1, epochs, f"loss {float(info.loss):.3f}")
    return state


def main() -> None:
    """Train, measure, draw, export and say it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 epochs: does it run?")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the folder goes")
    options = parser.parse_args()
    folder = options.runs / f"{time.strftime('%Y%m%d-%H%M%S')}-recipe"
    folder.mkdir(parents=True)
    recipe, data = make_recipe(), load_digits()
    order = random.permutation(random.key(2), len(data["image_id"]))
    test, key = take(data, order[:NUM_TEST]), random.key(3)
    state = train(recipe, take(data, order[NUM_TEST:]), 3 if options.quick else 40)
    params = state.all_params

    measured, _ = recipe.at("validation")(params, key, test)
    rate = metrics.wilson(measured["found"].numpy(), test["image_id"].numpy())
    error = float(measured["error"].mean())
    say(f"digits right: {rate}; share of ink off by {error:.3f}")

    few = take(test, slice(0, 8))
    answers, _ = recipe.at("inference")(params, key, few)
    drawn, _ = recipe.at("pictures")(params, key, few)
    viz.plot(drawn["picture"], path=folder / "answers.png")
    assert torch.equal(answers["logits"], drawn["logits"])

    recipe.save(folder / "weights", params)
    inputs, outputs = graph.export_onnx(recipe.at("export"), folder / "recipe.onnx", params, few)
    difference = compare_with_onnx(recipe, folder / "recipe.onnx", params, test)
    say(f"recipe.onnx: {', '.join(inputs)} -> {', '.join(outputs)}; it differs by {difference:.1e}")
    diagrams = [
        f"## {phase}\n\n```mermaid\n{recipe.mermaid(phase)}\n```\n" for phase in ("train", "inference")
    ]
    (folder / "recipe.md").write_text("\n".join(diagrams), "utf-8")
    facts = {"right": rate.value, "interval": [rate.low, rate.high], "of": rate.count}
    facts |= {"ink error": error, "onnx": difference}
    (folder / "recipe.json").write_text(json.dumps(facts, indent=1), "utf-8")
    say(f"folder: {folder}")


def compare_with_onnx(recipe: fpatch.Pipeline, path: Path, params: Any, batch: dict[str, Tensor]) -> float:
    """The largest difference of onnxruntime from torch, at two numbers of rows."""
    import onnxruntime

    session, largest = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), 0.0
    names = [output.name for output in session.get_outputs()]
    for rows in 1, 33:
        some = take(batch, slice(0, rows))
        expected = recipe.at("export").apply(params, {}, {"image": some["image"]}, want=names)
        found = session.run(None, {"image": some["image"].numpy()})
        for name, value in zip(names, found, strict=True):
            largest = max(largest, float((torch.from_numpy(value) - expected[name]).abs().max()))
    return largest


if __name__ == "__main__":
    main()
