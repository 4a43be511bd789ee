"""The command that measures attacks behind defenses: matrix."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fpatch.cli.answers import Answer
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import add_command, take_checkpoint, take_data_root, take_portable
from fpatch.cli.tables import percent, two_lines
from fpatch.core.files import check_writable
from fpatch.core.text import read_value

if TYPE_CHECKING:
    from fpatch.metrics import Rate
    from fpatch.runs.matrix import Matrix


def add(commands: Any) -> None:
    """Register the command."""
    matrix = add_command(
        commands,
        "matrix",
        _matrix,
        "measure the patch of every run behind every defense",
        "A DEFENSE is the id of a stage, or NAME={stage = ID, SETTING = VALUE, ...} in TOML. The file of "
        "--defenses holds such tables by name; a table of tables is a defense of several stages. Filters are "
        "put before the victim; defend.double_masking takes its place. A run that was trained through a "
        "defense, with --defense.NAME.stage ID, is its adaptive attack. The command prints a table, and "
        "writes it as JSON and as heat maps. Each cell is a table in the folder of its run, which `fpatch "
        "replay` reruns and verifies. Settings of [evaluate], of [data] and of metrics, --seed and --device "
        "are options by their dotted names, as for evaluate.",
        (
            "matrix runs/*-plain --defense defend.median",
            "matrix RUN --defense 'jpeg={stage=\"compose.jpeg\", quality=[20, 20]}'",
            "matrix runs/*-plain runs/*-through-median --defenses defenses.toml --out figures/matrix",
        ),
    )
    matrix.add_argument(
        "run_folders", metavar="RUN", nargs="+", help="runs against one victim; the first one counts"
    )
    matrix.add_argument("--defense", metavar="DEFENSE", action="append", help="may be repeated")
    matrix.add_argument("--defenses", metavar="FILE", help="a TOML file of defenses")
    take_checkpoint(matrix)
    take_portable(matrix)
    take_data_root(matrix)
    matrix.add_argument(
        "--out",
        metavar="FILE",
        help="FILE.png and FILE.json (default: beside the first run, named after runs and defenses)",
    )


def read_defenses(texts: Iterable[str], file: str | None) -> dict[str, dict[str, Any]]:
    """Read defenses from options and a file: the nodes of each, by name.

    Raises:
        ValueError: If one has no stage, or a name is given twice, or there is none.

    Example:
        >>> from fpatch.cli.defenses import read_defenses
        >>> read_defenses(['defend.median', 'few={stage="defend.bit_depth", num_bits=2}'], None)["few"]
        {'few': {'stage': 'defend.bit_depth', 'num_bits': 2}}
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        stage = read_value(value.strip()) if equals else {"stage": text}
        name = name.strip() if equals else text.replace(":", ".").rpartition(".")[2]
        _add_defense(found, name, stage, f"--defense {text}")
    if file is not None:
        from fpatch.study.config import read_toml

        for name, stage in read_toml(Path(file)).items():
            _add_defense(found, name, stage, f"{file}: {name}")
    if not found:
        raise ValueError("matrix: give a defense at least, such as --defense defend.median")
    return found


def _add_defense(found: dict[str, dict[str, Any]], name: str, stage: Any, where: str) -> None:
    if name in found:
        raise ValueError(f"{where}: the defense {name!r} is given twice; name one of them otherwise")
    table = dict(stage) if isinstance(stage, Mapping) else {}
    is_node = isinstance(table.get("stage"), str)
    is_group = bool(table) and all(isinstance(node, Mapping) for node in table.values())
    if not is_node and not is_group:
        raise ValueError(
            f"{where}: a defense is {{stage = ID, SETTING = VALUE, ...}} in TOML, or a table of such, got "
            f"{stage!r:.80}"
        )
    found[name] = {name: table} if is_node else table


def _matrix(options: argparse.Namespace) -> Answer:
    from fpatch.runs.matrix import matrix_facts, matrix_runs, save_matrix
    from fpatch.runs.naming import matrix_name
    from fpatch.runs.places import relative_settings

    defenses = read_defenses(options.defense or (), options.defenses)
    if options.out:
        check_writable("--out", Path(options.out).parent)
    with progress_bars() as on_progress:
        found = matrix_runs(
            options.run_folders,
            defenses,
            options.split,
            options.checkpoint,
            on_progress,
            settings=options.overrides,
            data_root=options.data_root,
        )
    console.print(matrix_table(found))
    folders = [Path(folder).resolve() for folder in options.run_folders]
    settings = relative_settings(options.overrides, folders[0])
    name = matrix_name([f.name for f in folders], defenses, options.split, options.checkpoint, settings)
    files = [str(file) for file in save_matrix(options.out or folders[0].parent / name, found)]
    for file in files:
        say(f"  {file}")
    facts = {"split": options.split, "checkpoint": options.checkpoint, "settings": settings}
    return Answer(0, {**facts, "goal": found.goal, "defenses": matrix_facts(found), "files": files})


def matrix_table(found: "Matrix") -> Table:
    """Make a table of defenses: their cost, and the strongest oblivious and adaptive attack behind each.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.cli.defenses import matrix_table
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.matrix import matrix_runs
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> found = matrix_runs([run.folder], {"few": {"few": {"stage": "defend.bit_depth"}}})
        >>> [str(cell) for cell in matrix_table(found).columns[0].cells]
        ['none', 'few']
    """
    from fpatch.evaluation.conditions import PATCH
    from fpatch.evaluation.defenses import UNDEFENDED
    from fpatch.evaluation.rates import question

    table = Table(title="success % of patches behind defenses", title_justify="left", title_style="bold")
    table.add_column("defense")
    for heading in ("clean %", "oblivious %", "adaptive %", "any attack %", "noise %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, behind in found.defenses.items():
        rates = {attack: rates.rates[PATCH] for attack, rates in behind.attacks.items()}
        oblivious = [rates[attack] for attack in found.oblivious]
        adaptive = [rates[attack] for attack in behind.adaptive]
        cells = (_highest(oblivious), _highest(adaptive), _highest(rates.values()))
        noise = found.controls(name).get("noise")
        of_noise = "-" if noise is None else percent(noise._replace(low=float("nan")))
        table.add_row(Text(name), *map(two_lines, (behind.clean, *cells)), of_noise)
    counted = {d: next(iter(b.attacks.values())).rates[PATCH].count for d, b in found.defenses.items()}
    clean = found.defenses[UNDEFENDED].clean
    warned = [f"{attack}: {text}" for attack, texts in found.warnings.items() for text in texts]
    for defense, behind in found.defenses.items():
        for attack, rates in behind.attacks.items():
            warned += [f"{attack} behind {defense}: {text}" for text in rates.warnings()]
    rows = ", ".join(f"{defense} {count}" for defense, count in counted.items())
    first = (
        f"clean: found without a patch, of {clean.count} rows ({clean.photographs} images); success: "
        f"{question(found.goal)}, among those found ({rows}); brackets are 95 % intervals over images"
    )
    trained = (
        "oblivious: trained without a defense; adaptive: trained through this one; of several the highest"
    )
    made = ", ".join(f"{name} step {step}" for name, step in found.steps.items())
    sentences = [*warned, first, trained, f"checkpoints: {made}"]
    table.caption, table.caption_justify = Text("\n".join(sentences)), "left"
    return table


def _highest(rates: "Iterable[Rate]") -> "Rate | None":
    """Return the rate with the highest value; None of none."""
    return max(rates, key=lambda rate: (rate.value == rate.value, rate.value), default=None)
