"""Malformed run folders, sweeps and files of detections."""
# ruff: noqa: E501, the tables of cases have a line for each

import json
from collections.abc import Iterator
from pathlib import Path

from malformed.damage import WRONG, Damage, bad_bytes, bad_json, edit, write
from malformed.engine import Case

SOME = {
    name: WRONG[name]
    for name in ("text", "nothing", "a list", "a table", "negative", "huge", "missing", "no number")
}
FEW = {name: WRONG[name] for name in ("text", "nothing", "a list", "missing")}


def folder_cases() -> Iterator[Case]:
    """Yield the fast cases."""
    for maker in (_configs, _broken, _sweeps, _scores, _records):
        yield from maker()


def slow_folder_cases() -> Iterator[Case]:
    """Yield the cases that rerun what a folder records."""
    yield from _verified()


def _configs() -> Iterator[Case]:
    """An edited run is refused, or resumed with a word; it never ends in a traceback."""
    for name in ("config.json", "environment.json", "data.json", "records.json"):
        wrong = FEW if name == "environment.json" else SOME
        for kind, damage in bad_json(f"first/{name}", wrong):
            yield Case(f"resume: {name} {kind}", ("resume", "{run}"), damage, codes=(0, 2))
    for kind, damage in bad_json("first/config.json", FEW):
        if kind.startswith(("data", "pipeline", "evaluate")):
            yield Case(f"open: config.json {kind}", ("transfer", "{run}", "{second}"), damage, codes=(0, 2))
    for name in ("test.json", "test.summary.json"):
        for kind, damage in bad_json(f"first/tables/{name}", FEW):
            yield Case(f"analyze: {name} {kind}", ("replay", "{run}", "--rows", "0"), damage, codes=(0, 1, 2))


def _broken() -> Iterator[Case]:
    files = {
        "config.json": ("resume", "{run}"),
        "environment.json": ("resume", "{run}"),
        "data.json": ("resume", "{run}"),
        "records.json": ("resume", "{run}"),
        "records.jsonl": ("resume", "{run}"),
        "checkpoints/last.safetensors": ("resume", "{run}"),
        "checkpoints/best.safetensors": ("evaluate", "{run}"),
        "tables/test.parquet": ("replay", "{run}"),
        "tables/test.json": ("replay", "{run}"),
        "tables/test.patches.safetensors": ("replay", "{run}"),
    }
    for name, words in files.items():
        for kind, damage in bad_bytes(f"first/{name}"):
            says = name.rpartition("/")[2].partition(".")[0]
            is_older = name in ("data.json", "records.json") and kind in (
                "gone",
                "a folder",
            )  # as in old runs
            codes, says = ((0, 2), "") if is_older else ((2,), says)
            yield Case(f"folder: {words[0]} {name} {kind}", words, damage, codes, says)
    for command in ("evaluate", "grid", "transfer", "matrix", "analyze", "replay", "resume"):
        needed = {"grid": ("--over", "camera/exposure/stops=0,1"), "transfer": ("{second}",)}
        words = (needed | {"matrix": ("--defense", "defend.median")}).get(command, ())
        for name in ("config.json", "environment.json"):
            for kind in ("empty", "deeply nested", "a pipe", "gone", "a folder"):
                damage = dict(bad_bytes(f"first/{name}"))[kind]
                yield Case(f"folder: {command} {name} {kind}", (command, "{run}", *words), damage, says=name)
        for name in ("nowhere", "study.toml", ".", "searched-sweep", "/dev/null", "\0", "x" * 5000):
            yield Case(f"folder: {command} of {name[:12]!r}", (command, name, *words))
    lines = {
        "a list": '["step", 3]\n', "a number": "3\n", "text": '"step"\n', "null": "null\n",
        "step a list": '{"kind": "scalars", "step": [], "time": 1, "values": {}}\n',
        "step missing": '{"kind": "scalars", "time": 1, "values": {}}\n',
        "values a list": '{"kind": "scalars", "step": 1, "time": 1, "values": []}\n',
        "values nested": '{"kind": "scalars", "step": 1, "time": 1, "values": {"a": {"b": 1}}}\n',
        "a kind of lists": '{"kind": [], "step": 1, "time": 1, "values": {}}\n',
        "no number": '{"kind": "scalars", "step": NaN, "time": NaN, "values": {"a": NaN}}\n',
        "half a line": '{"kind": "scalars", "st',
        "deep": "[" * 20_000 + "\n",
    }  # fmt: skip
    for kind, line in lines.items():
        for place in ("first", "last", "alone"):
            for command in ("resume", "analyze"):
                yield Case(
                    f"records: {command} {kind} {place}", (command, "{run}"), _line(line, place),
                    codes=(0, 2), says="" if command == "analyze" or place == "last" else "records.jsonl",
                )  # fmt: skip


def _line(line: str, place: str) -> Damage:
    def damage() -> None:
        path = Path("first/records.jsonl")
        text = path.read_text()
        path.write_text({"first": line + text, "last": text + line, "alone": line}[place])

    return damage


def _records() -> Iterator[Case]:
    """Headers of checkpoints with other values; the digest is made again, as an editor could."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    def rewritten(name: str, **changes: str | None) -> Damage:
        def damage() -> None:
            path = Path("first/checkpoints", name)
            with safe_open(path, framework="pt") as file:
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
                header = {**file.metadata(), **{n: v for n, v in changes.items() if v is not None}}
            for gone in [n for n, v in changes.items() if v is None]:
                header.pop(gone, None)
            for old in ("state", "seal"):
                header.pop(old, None)
            save_file(tensors, path, header)

        return damage

    for field in ("step", "facts", "records", "previous", "numbered", "format"):
        for value in (
            None,
            "",
            "hello",
            "-1",
            "[]",
            "{{}}",
            '{"best": "x"}',
            "[1]",
            "[1, 2, 3, 4]",
            "9" * 40,
            "nan",
            "null",
            "[{}, []]",
            "[" * 9999,
        ):
            yield Case(
                f"checkpoint: {field} {str(value)[:16]}",
                ("resume", "{run}"),
                rewritten("last.safetensors", **{field: value}),
                codes=(0, 2),
            )

    def retyped(change: str) -> Damage:
        def damage() -> None:
            path = Path("first/checkpoints/best.safetensors")
            with safe_open(path, framework="pt") as file:
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
                header = {n: v for n, v in file.metadata().items() if n not in ("state", "seal")}
            side = tensors["params/side"]
            if change == "missing":
                del tensors["params/side"]
            else:
                made = {
                    "float64": side.double(), "int": side.int(), "bool": side.bool(), "NaN": side * float("nan"),
                    "huge": side * 1e30, "empty": side[:0], "a number": torch.tensor(1.0), "4 channels": torch.ones(4, 10, 14),
                    "complex": side.to(torch.complex64), "larger": torch.zeros(3, 99, 14),
                }  # fmt: skip
                tensors["params/side"] = made[change].contiguous()
            save_file(tensors, path, header)

        return damage

    for change in (
        "missing",
        "float64",
        "int",
        "bool",
        "NaN",
        "empty",
        "a number",
        "4 channels",
        "complex",
        "larger",
    ):
        yield Case(
            f"checkpoint: patch {change}", ("evaluate", "{run}"), retyped(change), says="best|side|patch"
        )


def _sweeps() -> Iterator[Case]:
    name = "searched-sweep"
    for command in ("status", "best", "export", "resume"):
        for kind, damage in bad_bytes(f"{name}/sweep.json"):
            yield Case(
                f"sweep: {command} sweep.json {kind}", ("sweep", command, "{sweep}"), damage, says="sweep"
            )
    for kind, damage in bad_json(
        f"{name}/sweep.json", FEW, skip=r"study\.(train|log|evaluate|pipeline)\.\w+\."
    ):
        yield Case(f"sweep: status sweep.json {kind}", ("sweep", "status", "{sweep}"), damage, codes=(0, 2))
    for file in ("0000.json", "0000.outcome.json"):
        for kind, damage in bad_json(f"{name}/journal/{file}", SOME):
            yield Case(f"sweep: best {file} {kind}", ("sweep", "best", "{sweep}"), damage, codes=(0, 2))
    for file in ("0001.json", "0001.outcome.json", "0001.points.jsonl"):
        for kind, damage in bad_bytes(f"{name}/journal/{file}"):
            codes = (0, 2) if kind in ("gone", "empty", "without its end", "cut in half") else (2,)
            yield Case(
                f"sweep: best {file} {kind}",
                ("sweep", "best", "{sweep}"),
                damage,
                codes,
                "" if 0 in codes else "0001|sweep",
            )
    for line in (
        "[]",
        "[1]",
        '["x", "y", "z"]',
        "[[], [], []]",
        '[3, "hello", "1"]',
        "[null, null, null]",
        '[-1, "nan", "nan"]',
        '[3, "1e999", "0"]',
    ):
        yield Case(
            f"sweep: points {line}",
            ("sweep", "best", "{sweep}"),
            write(f"{name}/journal/0001.points.jsonl", f"{line}\n"),
            codes=(0, 2),
        )
    for word in ("nowhere", "study.toml", "first", ".", "", "\0"):
        for command in ("status", "best", "export", "resume"):
            yield Case(f"sweep: {command} of {word!r}", ("sweep", command, word))
    spaces = {
        "empty": "{}", "a number": "3", "one end": "{low = 1}", "swapped": "{low = 1, high = 0}", "equal": "{low = 1, high = 1}",
        "no number": "{low = nan, high = 1}", "infinite": "{low = 0, high = inf}", "text": '{low = "a", high = "b"}', "a list": "[0.1, 0.2]",
        "choices empty": "{choices = []}", "choices twice": "{choices = [1, 1]}", "choices nested": "{choices = [{a = 1}]}", "log of zero": '{low = 0, high = 1, scale = "log"}',
        "halves as whole": '{low = 0.5, high = 2, type = "int"}', "a date": "2026-01-01", "an end of a date": "{low = 2026-01-01, high = 3}", "dates": "[2026-01-01, 2027-01-01]", "unknown": "{min = 1, max = 2}", "true": "{low = true, high = false}",
        "huge": '{low = 1, high = 1e308}', "out of bounds": "{low = -1, high = 1}",
    }  # fmt: skip
    for kind, text in spaces.items():
        yield Case(
            f"space: {kind}",
            ("sweep", "sweep.toml"),
            edit("sweep.toml", "{low = 0.01, high = 0.3}", text),
            says="space|learning_rate",
        )
    settings = {
        "num_trials": ("0", "-1", "1.5", '"x"', "1" + "0" * 30, "true"), "search": ('"rand"', "3"), "seed": ("-1", '"x"', "1" + "0" * 30), "mode": ('"best"',),
        "cpus": ("-1", "0", "nan", "1e300"), "gpus": ("-1", "2", "nan", "inf"), "processes": ("0", "1.5", "1" + "0" * 18), "pack": ("0", '"all"', "1.5"),
        "retries": ("-1", "0.5"), "max_concurrent": ("0", "-1"), "grid_points": ("1", "1" + "0" * 18), "objective": ('"success/ptch"', "3", '""'),
        "address": ("3",), "storage": ("3", '"nowhere"', '"s3://"'),
    }  # fmt: skip
    for setting, values in settings.items():
        for value in values:
            yield Case(
                f"space: sweep.{setting} {value[:9]}",
                ("sweep", "sweep.toml", f"--sweep.{setting}", value),
                says=setting,
            )


def _scores() -> Iterator[Case]:
    words = ("score", "truth.json", "detections.json")
    for name in ("truth.json", "detections.json"):
        for kind, damage in bad_bytes(name):
            yield Case(f"score: {name} {kind}", words, damage, says=name)
    free = r"images\.0\.id (text|long|control|negative|half|huge)$^|categories\.0\.name|annotations (a list)|annotations\.0 missing$|^0 missing$|(^|\.)bbox\.0 (negative|half)|score (negative|half)$"
    for name in ("truth.json", "detections.json"):
        for kind, damage in bad_json(name, skip=free):
            yield Case(f"score: {name} {kind}", words, damage, says=name)
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "score": 0.9}
    more = {
        "iscrowd -1": ("truth.json", {"iscrowd": -1}), "iscrowd 2": ("truth.json", {"iscrowd": 2}), "iscrowd text": ("truth.json", {"iscrowd": "no"}),
        "width negative": ("detections.json", {"bbox": [0, 0, -8, 8]}), "three numbers": ("detections.json", {"bbox": [0, 0, 8]}),
        "score of 95 percent": ("detections.json", {"score": 95}), "score negative": ("detections.json", {"score": -0.1}),
        "score NaN": ("detections.json", {"score": float("nan")}), "score text": ("detections.json", {"score": "0.9"}), "huge box": ("detections.json", {"bbox": [0, 0, 1e999, 8]}),
    }  # fmt: skip
    for kind, (name, change) in more.items():
        entry = {**box, **change}
        truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "car"}], "annotations": [entry]}
        yield Case(
            f"score: {kind}",
            words,
            write(name, json.dumps(truth if name == "truth.json" else [entry])),
            says=name,
        )
    for option in ("--iou", "--score"):
        for value in ("2", "-1", "nan", "inf", "half", "", "1,5", "1e999"):
            yield Case(f"score: {option} {value}", (*words, f"{option}={value}"), says=option[2:])


def _verified() -> Iterator[Case]:
    """Every edited value of a record is noticed."""
    for name in (
        "config.json",
        "environment.json",
        "data.json",
        "records.json",
        "tables/test.json",
        "tables/test.summary.json",
    ):
        for kind, damage in bad_json(f"first/{name}", SOME):
            yield Case(f"verify: {name} {kind}", ("replay", "{run}", "--verify"), damage, codes=(1, 2))
    for name in (
        "tables/test.csv",
        "tables/test.parquet",
        "tables/test.patches.safetensors",
        "patch/side.png",
        "checkpoints/step-00000002.safetensors",
        "records.jsonl",
    ):
        for kind, damage in bad_bytes(f"first/{name}"):
            yield Case(f"verify: {name} {kind}", ("replay", "{run}", "--verify"), damage, codes=(1, 2))
