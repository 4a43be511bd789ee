"""Malformed options and arguments of every command."""
# ruff: noqa: E501, the tables of cases have a line for each

from collections.abc import Iterator
from pathlib import Path

from malformed.engine import Case

NUMBERS = ("", "x", "nan", "inf", "1e999", "--", "0y10", "1,5", "٣", "1" + "0" * 400)
COUNTS = (*NUMBERS, "-1", "0.5", "0", "1" + "0" * 18)


def option_cases() -> Iterator[Case]:
    """Yield the fast cases."""
    for maker in (_words, _overrides, _measurements, _places):
        yield from maker()


def slow_option_cases() -> Iterator[Case]:
    """Yield the cases that run a command to its end."""
    for value in (".1", "1e-1", "0.1_0", "+0.1", "1e-01", " 0.1 "):
        yield Case(
            f"numbers: rate {value!r}",
            ("train", "study.toml", "--optimizer.learning_rate", value),
            codes=(0,),
        )
    for value in ("1e1", "1_0", "+6", "6.0"):
        yield Case(
            f"numbers: steps {value!r}", ("train", "study.toml", "--train.num_steps", value), codes=(0,)
        )
    for value in ("2026-01-01", "3", "1.5", "true", "nan"):
        yield Case(f"numbers: name {value!r}", ("train", "study.toml", "--name", value), codes=(0,))
        codes = (2,) if value == "true" else (0,)  # a truth value is no text: the message says to quote it
        yield Case(
            f"numbers: experiment {value!r}", ("train", "study.toml", "--log.experiment", value), codes=codes
        )
    yield Case("numbers: doctor rows 1e1", ("doctor", "study.toml", "--rows", "1e1"), codes=(0,))


def _words() -> Iterator[Case]:
    commands = (
        "demo",
        "describe",
        "doctor",
        "train",
        "resume",
        "evaluate",
        "grid",
        "transfer",
        "analyze",
        "replay",
        "score",
        "sweep",
    )
    yield Case("words: none", ())
    yield Case("words: unknown command", ("trian", "study.toml"), says="train")
    for command in commands:
        if command != "demo":
            yield Case(f"words: {command} alone", (command,))
        yield Case(f"words: {command} unknown option", (command, "study.toml", "--nonsense"))
        yield Case(f"words: {command} too much", (command, *["study.toml"] * 9))
    for command in ("describe", "doctor", "train"):
        yield Case(f"words: {command} of a run", (command, "{run}"), says="run")
        yield Case(f"words: {command} of a sweep", (command, "{sweep}"), says="sweep")
        yield Case(f"words: {command} of an image", (command, "poster.png"), says="poster.png")
        for word in ("", ".", "/", "nowhere.toml", "\0", "x" * 5000, "/dev/null", "/dev/zero"):
            yield Case(f"words: {command} of {word[:12]!r}", (command, word))
    yield Case("words: transfer of one", ("transfer", "{run}"), says="two|another")
    yield Case("words: transfer of one twice", ("transfer", "{run}", "{run}"), says="differ")
    yield Case("words: sweep of a study", ("sweep", "study.toml"), says="space")
    yield Case(
        "words: sweep export to nowhere",
        ("sweep", "export", "{sweep}", "--out", "/proc/none/x"),
        says="/proc/none",
    )
    yield Case("words: sweep export no trial", ("sweep", "export", "{sweep}", "--trial", "9999"), says="9999")
    for value in COUNTS:
        yield Case(
            f"words: sweep resume --num-trials {value[:9]!r}",
            ("sweep", "resume", "{sweep}", "--num-trials", value),
            says="num.trials",
        )
    yield Case("words: sweep fetch nowhere", ("sweep", "fetch", "nowhere"))
    yield Case("words: sweep fetch odd", ("sweep", "fetch", "xyz://nothing/here"))


def _overrides() -> Iterator[Case]:
    names = {
        "optimizer.learning_rate": NUMBERS, "train.num_steps": COUNTS, "train.batch_size": COUNTS, "evaluate.num_draws": COUNTS,
        "evaluate.block": COUNTS, "evaluate.every": COUNTS, "evaluate.score": (*NUMBERS, "2", "-1"), "seed": (*NUMBERS, "-1", "0.5"), "train.checkpoint_every": COUNTS,
        "train.micro_batch": tuple(v for v in COUNTS), "train.rho": (*NUMBERS, "-1"), "log.profile_steps": ("-1", "x", "0.5"),
        "pipeline.camera/exposure.stops": ("", "x", "[1]", "[1, 0]", "[nan, 1]", "[0, inf]", "nan", "[0, 1, 2]", "[[0], 1]", "[true, false]"),
        "pipeline.camera/exposure.stops.low": NUMBERS, "pipeline.camera/exposure.stops.middle": ("1",), "pipeline.camera/exposure": ("3", "[]"),
        "pipeline": ("7",), "data.size": ("96", "[96]", "[0, 0]", "[-1, 5]", "[1, 2, 3]", "x", "[1e9, 1e9]", "[100000000, 100000000]"),
        "device": ("cuda:99999999999", "cuda:x", "gpu", "", "meta", "cuda:-1", "3", "mps"),
        "data.placements": ("nowhere.csv", ".", "", "3", "/dev/zero"), "data.objects": ("nowhere.csv", "."), "data.root": ("nowhere", "study.toml"),
        "data.resident": ("gpu",), "data.validation": ("nowhere", "3", ""), "data.test": ("nowhere",), "data.outside_frac": ("-1", "nan", "x", "inf"),
        "objective.weights.vanish": NUMBERS, "objective.weights.nothing": ("1",), "objective.weights": ("{{}}", "3"), "train.compile": ('"fast"',), "train.precision": ("float8",),
        "log.runs": ("/proc/none", "study.toml", "s3://bucket/x", ""), "log.mlflow": ("mlflow.db",), "evaluate.metric": ("fund", ""), "evaluate.best": ("success/pach",),
        "evaluate.controls.x": ("nowhere.png", ".", "study.toml", "3"), "name": ("", "../x", "a/b", "x" * 300, "CON"),
        "nonsense.setting": ("1",), "train.num_stepz": ("3",), "train": ("3",), "train.": ("3",), ".": ("3",),
    }  # fmt: skip
    for name, values in names.items():
        for value in values:
            names_the_file = name.startswith(("data.placements", "data.objects", "evaluate.controls"))
            says = "" if names_the_file else name.rpartition(".")[2] or name.rstrip(".")
            yield Case(
                f"override: {name} {value[:12]!r}",
                ("train", "study.toml", f"--{name}={value}"),
                says=says.replace("/", "."),
            )
    for command in ("train", "describe", "doctor", "sweep", "evaluate"):
        target = {"sweep": "sweep.toml", "evaluate": "{run}"}.get(command, "study.toml")
        yield Case(
            f"override: {command} without a value", (command, target, "--train.num_steps"), says="num_steps"
        )
        yield Case(f"override: {command} unknown", (command, target, "--trian.num_steps", "3"), says="trian")
    for value in ("1", "[0]"):
        yield Case(
            f"override: evaluate a trained setting {value}",
            ("evaluate", "{run}", "--train.num_steps", value),
            says="num_steps",
        )


def _measurements() -> Iterator[Case]:
    axis = "camera/exposure/stops"
    for value in ("--", "", "=", axis, f"{axis}=", f"{axis}=x", f"{axis}=nan", f"{axis}=inf", f"{axis}=0:1", f"{axis}=0:1:0", f"{axis}=0:1:-1", f"{axis}=0:1:x", f"{axis}=0:1:2:3",
                  f"{axis}=-1:1:100000000", f"{axis}=0:nan:3", f"{axis}=0,,1", f"{axis}=1,1", "nothing/here=1", f"{axis}=0:1:1.5", f"{axis}=1:1:3", f"{axis}=0:1:1e18", "=1,2",
                  f"{axis}=" + "1," * 5000 + "2"):  # fmt: skip
        yield Case(
            f"options: grid --over {value[:40]!r}",
            ("grid", "{run}", f"--over={value}"),
            says="over|stops|nothing",
        )
    yield Case(
        "options: grid one path twice",
        ("grid", "{run}", "--over", f"{axis}=0", "--over", f"{axis}=1"),
        says="once|twice",
    )
    edits = (
        "--",
        "",
        "=",
        "x",
        f"{axis}=",
        f"{axis}=x",
        f"{axis}=nan",
        f"{axis}=inf",
        "nothing=1",
        f"{axis}=1,2",
        "=1",
        f"{axis}",
        f"{axis}=1e999",
        f"{axis}=99",
    )
    for value in edits:
        yield Case(
            f"options: replay --set {value!r}",
            ("replay", "{run}", f"--set={value}"),
            says="set|stops|nothing",
        )
    yield Case(
        "options: replay one path twice",
        ("replay", "{run}", "--set", f"{axis}=0", "--set", f"{axis}=0.1"),
        says="twice|once",
    )
    for value in (
        "x",
        "1:x",
        ":::",
        "99",
        "99:100",
        "-99",
        "5:2",
        "0.5",
        "1e99",
        "nan",
        "1" + "0" * 30,
        "",
        "٣",
    ):
        yield Case(
            f"options: replay --rows {value[:9]!r}", ("replay", "{run}", f"--rows={value}"), says="rows"
        )
    for value in ("-1", "0", "7", "x", "1.5", "1" + "0" * 30, "nan"):
        yield Case(
            f"options: replay --step {value[:9]!r}",
            ("replay", "{run}", f"--step={value}"),
            says="step|update",
        )
    for value in ("", "none", "../test", "test.json", "x" * 300, "\0", "validation-9"):
        for command in ("replay", "analyze"):
            yield Case(
                f"options: {command} --table {value[:9]!r}",
                (command, "{run}", f"--table={value}"),
                says="table",
            )
    for value in ("", "none", "../best", "step-1", "step-00000099", "x" * 300, "\0"):
        for command in ("evaluate", "grid", "transfer"):
            words = {"grid": ("--over", f"{axis}=0,1"), "transfer": ("{second}",)}.get(command, ())
            yield Case(
                f"options: {command} --checkpoint {value[:9]!r}",
                (command, "{run}", *words, f"--checkpoint={value}"),
                says="checkpoint",
            )
    for command in ("evaluate", "grid", "transfer"):
        words = {"grid": ("--over", f"{axis}=0,1"), "transfer": ("{second}",)}.get(command, ())
        yield Case(f"options: {command} --split", (command, "{run}", *words, "--split=train"), says="split")
    for value in ("", "nothing", "found", "draw", "path", "sample/nothing", "\x1b[2J"):
        yield Case(
            f"options: analyze --metric {value!r}",
            ("analyze", "{run}", f"--metric={value}"),
            says="metric|column|found",
        )
    for value in ("", "none", "../last", "step-00000099", "\0"):
        yield Case(
            f"options: resume --from {value!r}",
            ("resume", "{run}", f"--from={value}"),
            says="checkpoint|from",
        )
    for value in COUNTS:
        yield Case(
            f"options: doctor --rows {value[:9]!r}", ("doctor", "study.toml", f"--rows={value}"), says="rows"
        )
    for value in ("trian", "", "Eval", "\0"):
        yield Case(
            f"options: describe --phase {value!r}",
            ("describe", "study.toml", f"--phase={value}"),
            says="phase",
        )
    for value in ("x", "1.5", "nan", ""):
        yield Case(f"options: demo --seed {value!r}", ("demo", "--quick", f"--seed={value}"), says="seed")
    yield Case("options: demo --seed -1", ("demo", "--quick", "--seed=-1"), says="seed")
    yield Case("options: demo --seed huge", ("demo", "--quick", "--seed", "1" + "0" * 30), says="seed")


def _places() -> Iterator[Case]:
    for place in ("/proc/none", "study.toml", "study.toml/x", "/dev/null", "\0", "x" * 300):
        yield Case(f"places: demo --runs {place[:12]!r}", ("demo", "--quick", f"--runs={place}"))
        yield Case(
            f"places: train into {place[:12]!r}",
            ("train", "study.toml", f"--log.runs={place}"),
            says="log.runs|runs",
        )
        yield Case(
            f"places: replay --out {place[:12]!r}",
            ("replay", "{run}", f"--out={place}"),
            says="out|study.toml|/",
        )
        yield Case(
            f"places: transfer --out {place[:12]!r}", ("transfer", "{run}", "{second}", f"--out={place}/t")
        )
    yield Case(
        "places: figures a file",
        ("evaluate", "{run}"),
        lambda: (Path("first/figures/test.png").unlink(), Path("first/figures/test.png").mkdir()),
    )
    yield Case("places: tables a file", ("evaluate", "{run}"), _tables_is_a_file)
    yield Case("places: checkpoints a file", ("resume", "{run}"), _checkpoints_is_a_file)


def _tables_is_a_file() -> None:
    import shutil

    shutil.rmtree("first/tables")
    Path("first/tables").write_text("")


def _checkpoints_is_a_file() -> None:
    import shutil

    shutil.rmtree("first/checkpoints")
    Path("first/checkpoints").write_text("")
