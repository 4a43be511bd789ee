"""The form of records in MLflow: metrics, parameters, tags, dataset inputs and artifact files."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from fpatch.core.names import safe_name
from fpatch.log.records import Kind, Record
from fpatch.log.values import inside, to_text

_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_MAX_DIGEST_LENGTH = 36


def entries(records: list[Record], kind: Kind) -> list[tuple[Record, str, Any]]:
    """List the values of one kind, each with its record and its name."""
    return [
        (record, name, value)
        for record in records
        if record["kind"] == kind
        for name, value in record["values"].items()
    ]


def make_metrics(records: list[Record]) -> list[Any]:
    """Convert scalars to MLflow's metrics."""
    from mlflow.entities import Metric

    return [
        Metric(safe_name(name), float(value), record["time"], record["step"])
        for record, name, value in entries(records, "scalars")
    ]


def sort_params(records: list[Record], known: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Sort parameters into new ones and changed ones, which MLflow refuses.

    Args:
        records: The records.
        known: The parameters of the run in MLflow.
    """
    new: dict[str, str] = {}
    changed: dict[str, str] = {}
    for _, name, value in entries(records, "params"):
        key, text = safe_name(name), _cut(to_text(value), _MAX_PARAM_LENGTH)
        if text != (known | new).get(key):
            (changed if key in known or key in new else new)[key] = text
    return new, changed


def make_params(params: dict[str, str]) -> list[Any]:
    """Convert parameters to MLflow's."""
    from mlflow.entities import Param

    return [Param(*entry) for entry in params.items()]


def make_tags(records: list[Record], changed_params: dict[str, str]) -> list[Any]:
    """Convert tags to MLflow's, with changed parameters, the description and a mark for images among them."""
    from mlflow.entities import RunTag

    tags = {safe_name(name): to_text(value) for _, name, value in entries(records, "tags")}
    tags |= {f"resumed/{name}": value for name, value in changed_params.items()}
    for _, name, text in entries(records, "text"):
        if name == "description":
            tags["mlflow.note.content"] = text
    if entries(records, "images"):
        tags["mlflow.loggedImages"] = "True"
    return [RunTag(name, _cut(text, _MAX_TAG_LENGTH)) for name, text in tags.items()]


def make_inputs(records: list[Record]) -> list[Any]:
    """Convert data sets to MLflow's inputs."""
    return [_make_input(name, value) for _, name, value in entries(records, "input")]


def _make_input(name: str, value: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": value["source"]}), json.dumps(value["profile"])
    dataset = Dataset(name, value["digest"][:_MAX_DIGEST_LENGTH], "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", value["context"])])


def stage_files(target: Path, folder: Path, records: list[Record]) -> None:
    """Write the artifact files of records: texts, and images with the names of MLflow's image grid.

    Args:
        target: The folder of the artifacts.
        folder: The run folder.
        records: The records.
    """
    texts = {
        f"text/{safe_name(name)}/{record['step']:08d}.md": text
        for record, name, text in entries(records, "text")
    }
    for _, name, value in entries(records, "params"):
        if len(text := to_text(value)) > _MAX_PARAM_LENGTH:
            texts[f"params/{safe_name(name)}.txt"] = text
    for path, text in texts.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, "utf-8")
    for record, name, path in entries(records, "images"):
        (target / "images").mkdir(exist_ok=True)
        key, uid = safe_name(name).replace("/", "~"), uuid.uuid5(uuid.NAMESPACE_URL, path)
        stem = f"images/{key}+step+{record['step']}+timestamp+{record['time']}+{uid}"
        source = inside(folder, path)
        shutil.copyfile(source, target / f"{stem}.png")
        with Image.open(source) as image:
            image.thumbnail((256, 256))
            image.save(target / f"{stem}+compressed.webp")


def _cut(text: str, length: int) -> str:
    note = " ... (cut, whole among the artifacts)"
    return text if len(text) <= length else text[: length - len(note)] + note
