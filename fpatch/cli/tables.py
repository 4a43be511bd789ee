"""Tables that the command line prints."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fpatch.analysis import Importances
    from fpatch.evaluation.rates import Success
    from fpatch.evaluation.transfer import Transfer
    from fpatch.metrics import Rate
    from fpatch.metrics.detection_files import DetectionScore
    from fpatch.tune.folder.journal import Entry
    from fpatch.tune.plan import Plan


def percent(rate: "Rate") -> str:
    """Format a rate and its interval in percent; "not finite" for rows that were counted without one.

    Example:
        >>> from fpatch.cli.tables import percent
        >>> from fpatch.metrics import Rate
        >>> percent(Rate(0.25, 0.1, 0.5, 40, 10))
        ' 25.0  [10.0, 50.0]'
    """
    if rate.value != rate.value:
        return "not finite" if rate.count else "-"
    bounds = "" if rate.low != rate.low else f"  [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{100 * rate.value:5.1f}{bounds}"


def two_lines(rate: "Rate | None") -> str:
    """Format a rate above its interval; "-" for none.

    Example:
        >>> from fpatch.cli.tables import two_lines
        >>> from fpatch.metrics import Rate
        >>> print(two_lines(Rate(0.25, 0.1, 0.5, 40, 10)))
        25.0
        [10.0, 50.0]
    """
    return "-" if rate is None else percent(rate).strip().replace("  [", "\n[")


def condition_title(condition: str) -> str:
    """Return the title of a condition, "no patch" for "none"."""
    from fpatch.evaluation.conditions import TITLES

    return "no patch" if condition == "none" else TITLES.get(condition, condition)


def _counted(rate: "Rate") -> str:
    """Format a share in percent with its count."""
    if rate.value != rate.value and rate.count:
        return "not finite"
    return "-" if rate.value != rate.value else f"{100 * rate.value:.1f} ({round(rate.value * rate.count)})"


def rates_of(title: str, rates: "Success") -> RenderableType:
    """Make a table of success rates; without a patch, a sentence about what is right.

    Example:
        >>> import numpy as np
        >>> from fpatch import success
        >>> from fpatch.cli.tables import rates_of
        >>> table = {"image_id": np.arange(5), "found/none": np.array([1, 1, 1, 1, 0], bool)}
        >>> print(rates_of("test", success(table)))
        test: right without a patch: 4 of 5 (5 images), 80.0 % [37.6, 96.4]
        brackets are a 95 % interval over images; with fewer than 20 images it is rough at best
    """
    from fpatch.ops.intervals import FEW_IMAGES

    if rates.rates:
        return success_table(title, rates)
    clean = rates.clean
    if clean.value != clean.value:
        why = "rows are not finite" if rates.not_finite else "no row has an object"
        return Text("\n".join([f"{title}: nothing can be measured: {why}", *rates.warnings()]))
    bounds = "" if clean.low != clean.low else f" [{100 * clean.low:.1f}, {100 * clean.high:.1f}]"
    counted = f"{round(clean.value * clean.count)} of {clean.count} ({clean.photographs} images)"
    note = "brackets are a 95 % interval over images" if bounds else "too few images for an interval"
    if bounds and clean.photographs < FEW_IMAGES:
        note += f"; with fewer than {FEW_IMAGES} images it is rough at best"
    return Text(f"{title}: right without a patch: {counted}, {100 * clean.value:.1f} %{bounds}\n{note}")


def success_table(title: str, rates: "Success", extra: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Make a table of success rates by condition.

    Args:
        title: The title above the table.
        rates: The rates to show.
        extra: Further columns by heading, one entry per condition.

    Example:
        >>> import numpy as np
        >>> from fpatch import success
        >>> from fpatch.cli.tables import success_table
        >>> without, patched = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
        >>> rates = success({"image_id": np.arange(5), "found/none": without, "found/patch": patched})
        >>> table = success_table("a patch of five rows", rates)
        >>> [list(column.cells) for column in table.columns]
        [['trained patch'], [' 75.0'], ['']]
    """
    from fpatch.evaluation.conditions import NONE
    from fpatch.ops.intervals import FEW_IMAGES

    clean = rates.clean
    found = next(iter(rates.rates.values())).count
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("condition", no_wrap=True)
    counted = "success" if rates.goal is None else f"answered {rates.goal}"
    table.add_column(f"{counted} %\nof {found} found", justify="right", no_wrap=True)
    if rates.gone:
        table.add_column("gone %", justify="right")
        table.add_column("displaced %", justify="right")
    table.add_column("patch minus it", justify="right", no_wrap=True)
    for heading in extra or {}:
        table.add_column(heading, justify="right")
    for i, (condition, rate) in enumerate(rates.rates.items()):
        cells = [condition_title(condition), percent(rate)]
        if rates.gone:
            parts = (rates.gone[condition].value, rates.displaced[condition].value)
            cells += ["-" if part != part else f"{100 * part:.1f}" for part in parts]
        cells.append(percent(rates.over[condition]) if condition in rates.over else "")
        table.add_row(*cells, *(column[i] for column in (extra or {}).values()))
    table.caption_justify = "left"
    warned = rates.warnings()
    if NONE in rates.not_finite:
        table.caption = "\n".join(warned)
        return table
    if not found:
        table.caption = (
            f"nothing can be measured: without a patch the victim is right in none of {clean.count} rows "
            f"({clean.photographs} images); `fpatch doctor` looks for the reason"
        )
        return table
    first = (
        f"success: {rates.question}, among the {found} of {clean.count} rows ({clean.photographs} "
        "images) found without; brackets are 95 % intervals over images"
    )
    if clean.photographs < FEW_IMAGES:
        first += f"; with fewer than {FEW_IMAGES} images they are rough at best"
    missed = [f"{condition_title(c)} {_counted(rate)}" for c, rate in rates.missed.items()]
    sentences = [*warned, first, f"missed %, of all {clean.count} rows with an object: {', '.join(missed)}"]
    if rates.drop:
        lost = [f"{condition_title(c)} {_mean(rate)}" for c, rate in rates.drop.items()]
        sentences.append(f"score lost, mean over the {found} found: {', '.join(lost)}")
    if rates.goal is not None:
        gained = [f"{condition_title(c)} {_mean(rate)}" for c, rate in rates.gain.items()]
        of_goal = f"score of {rates.goal!r} gained, mean over the {found} found"
        sentences.append(f"{of_goal}: {', '.join(gained)}; rows of that class are left out")
    table.caption = "\n".join(sentences)
    return table


def _mean(rate: "Rate") -> str:
    """Format a mean with two digits, without a sign of zero."""
    return "not finite" if rate.value != rate.value else f"{round(rate.value, 2) + 0.0:.2f}"


def score_table(found: "DetectionScore", iou: float, score: float) -> Table:
    """Make a table of recall and AP, by class and over all."""
    table = Table(title_justify="left", title_style="bold")
    table.title = f"recall at score {score:g} and AP, at IoU {iou:g}"
    table.add_column("class")
    for heading in ("objects", "detections", "recall %", "AP"):
        table.add_column(heading, justify="right", no_wrap=True)

    def precision(value: float) -> str:
        return "-" if value != value else f"{value:.3f}"

    for name, entry in found.classes.items():
        counts = (str(entry.objects), str(entry.detections))
        table.add_row(Text(name), *counts, percent(entry.recall), precision(entry.precision))
    table.add_section()
    detections = sum(entry.detections for entry in found.classes.values())
    counts = (str(found.recall.count), str(detections))
    table.add_row("all", *counts, percent(found.recall), precision(found.precision))
    table.caption = (
        f"AP over IoU 0.5 to 0.95: {precision(found.coco)}; {found.images} images, {found.silent} of them "
        "without a detection; brackets are 95 % intervals over images with objects"
    )
    if found.left_out:
        table.caption += (
            f"; AP leaves out {found.left_out} detections: as in COCO, it counts the best 100 of an image "
            "and class"
        )
    table.caption_justify = "left"
    return table


def transfer_table(found: "Transfer") -> Table:
    """Make a table of the success of every patch and control on every victim.

    Example:
        >>> from fpatch.cli.tables import transfer_table
        >>> from fpatch.evaluation.transfer import Transfer
        >>> from fpatch.metrics import Rate
        >>> rates = {"small": {"small": Rate(0.9, 0.8, 1.0, 40, 40), "large": Rate(0.4, 0.3, 0.5, 40, 40)}}
        >>> found = Transfer(rates, {"small": Rate(1.0, 0.9, 1.0, 40, 40)}, {})
        >>> [list(column.cells) for column in transfer_table(found).columns]
        [['small', 'large'], [' 90.0  [80.0, 100.0]', ' 40.0  [30.0, 50.0]']]
    """
    from fpatch.evaluation.rates import question

    table = Table(title="success % of every patch on every victim", title_justify="left", title_style="bold")
    table.add_column("trained on")
    titles = found.titles
    for name in found.rates:
        table.add_column(f"measured on {titles.get(name, name)}", justify="right")
    for condition in next(iter(found.rates.values())):
        cells = (percent(rates[condition]) for rates in found.rates.values())
        table.add_row(titles.get(condition, condition_title(condition)), *cells)
    counted = ", ".join(
        f"{found.rates[name][name].count} of {clean.count}" for name, clean in found.clean.items()
    )
    images = next(iter(found.clean.values())).photographs
    made = ", ".join(f"{name} step {step}" for name, step in found.steps.items())
    steps = [f"checkpoints: {made}"] if made else []
    warned = [f"on {name}, {text}" for name, texts in found.warnings.items() for text in texts]
    first = (
        f"success: {question(found.goal)}, among the rows found without ({counted}; {images} "
        "images); brackets are 95 % intervals over images"
    )
    table.caption, table.caption_justify = "\n".join([*warned, first, *steps]), "left"
    return table


def trials_table(
    plan: "Plan", entries: "Sequence[Entry]", num_rows: int | None = 12, *, going: bool = True
) -> Table:
    """Make a table of trials, the best first, unfinished and failed ones last.

    Args:
        plan: The plan of the sweep.
        entries: The trials.
        num_rows: The maximal number of rows; None: all.
        going: True if the sweep runs: a trial without an outcome is then "running", else "interrupted".
    """
    objective, sign = plan.sweep.objective, plan.sweep.sign
    table = Table(title=f"{plan.study.name}: {objective}, {plan.sweep.mode}", title_justify="left")
    table.title_style = "bold"
    for heading in ("trial", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in (objective, "+-", "step", *_last_parts(plan.space.varied)):
        broken = heading.replace("/", "/\n").replace("_", "_\n")
        table.add_column(broken, justify="right", overflow="fold")
    unfinished = "running" if going else "interrupted"
    order = ("finished", "stopped", unfinished, "failed")

    def status(entry: "Entry") -> str:
        return unfinished if entry.outcome is None else entry.outcome.status

    def rank(entry: "Entry") -> tuple[int, float]:
        group = order.index(status(entry))
        return group, -sign * entry.value if entry.value == entry.value else float("inf")

    for entry in sorted(entries, key=rank)[:num_rows]:
        value = f"{entry.value:.4g}" if entry.points else "-"
        settings = [entry.trial.settings.get(n, "-") for n in plan.space.varied]
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in settings]
        step = str(entry.points[-1].step) if entry.points else "0"
        spread = f"{entry.error:.2g}" if entry.error == entry.error else "-"
        table.add_row(entry.trial.name, status(entry), value, spread, step, *map(Text, cells))
    counts = [status(entry) for entry in entries]
    said = [f"{counts.count(s)} {s}" for s in order if s in counts]
    sentences = [", ".join(said) + "; +- is a standard error over images"]
    sentences += [
        f"{e.trial.name} failed: {e.outcome.error}" for e in entries if e.outcome and e.outcome.error
    ]
    table.caption, table.caption_justify = Text("\n".join(sentences)), "left"
    return table


def settings_table(plan: "Plan", entry: "Entry") -> Table:
    """Make a table of one trial: its objective, and every varied setting by its full name."""
    error = entry.error
    spread = f" +- {error:.2g}, a standard error over images" if error == error else ""
    table = Table(
        title=f"{plan.study.name}, trial {entry.trial.name}", title_justify="left", show_header=False
    )
    table.title_style = "bold"
    table.add_row(Text(plan.sweep.objective), Text(f"{entry.value:.4g}{spread}"), end_section=True)
    for name, value in entry.trial.settings.items():
        table.add_row(Text(name), Text(f"{value:.6g}" if isinstance(value, float) else str(value)))
    return table


def _last_parts(names: Iterable[str]) -> list[str]:
    """Shorten dotted names to the last parts that tell them apart; `low` and `high` keep their range."""
    split = [name.split(".") for name in names]
    short = []
    for parts in split:
        fewest = 2 if parts[-1] in ("low", "high") else 1
        lengths = range(fewest, len(parts) + 1)
        length = next(n for n in lengths if sum(other[-n:] == parts[-n:] for other in split) == 1)
        short.append(".".join(parts[-length:]))
    return short


def importance_table(title: str, result: "Importances") -> RenderableType:
    """Make a table of the importance of each sampled column, with the score of the prediction."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("sampled column", no_wrap=True)
    table.add_column("importance", justify="right", no_wrap=True)
    for column in result.columns:
        table.add_row(column.column.removeprefix("sample/"), f"{column.mean:.3f} +- {column.std:.3f}")
    score = result.score
    counted = f"{score.count} rows of {score.photographs} images"
    sentences = [
        f"held-out score {score.value:.3f} [{score.low:.3f}, {score.high:.3f}] on {counted}",
        *(f"warning: {sentence}" for sentence in result.warnings),
    ]
    if result.constant:
        sentences.append(f"left out: {len(result.constant)} columns that do not vary")
    if result.dropped:
        sentences.append(
            f"left out: {result.dropped} rows in which {result.metric} is not finite, or no object is"
        )
    return Group(table, *(Text(sentence) for sentence in sentences))
