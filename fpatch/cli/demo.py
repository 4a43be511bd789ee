"""The command `fpatch demo`."""

from pathlib import Path

from fpatch.cli.console import console, progress_bars
from fpatch.cli.tables import percent, success_table
from fpatch.core.files import check_writable
from fpatch.core.names import typed
from fpatch.core.progress import Progress
from fpatch.demo.measurements import Result, look_closer
from fpatch.demo.recorded import compare_with_recorded, printed_rates
from fpatch.demo.study import FULL, QUICK, prepare_scenes, prepare_study
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.training import train
from fpatch.study.config import load_study


def run_demo(runs: Path, *, quick: bool = False, mlflow: str | bool = True, seed: int = 0) -> list[Result]:
    """Run the demo, print its tables and leave its run folders.

    Args:
        runs: The folder of run folders.
        quick: Train one victim, on fewer and smaller images.
        mlflow: A tracking URI; True: a local SQLite file beside the runs.
        seed: The seed of scenes, victims and patches.
    """
    check_writable("--runs", runs)
    size = QUICK if quick else FULL
    results = []
    with progress_bars() as on_progress:
        scenes = prepare_scenes(size, seed, on_progress)
        for number in range(size.num_victims):
            config = prepare_study(
                runs, f"demo-victim{number}", scenes, size, mlflow, seed, number, on_progress
            )
            own = _prefix(on_progress, f"patch {number}")
            run = train(load_study(config), own)
            evaluate_run(run.folder, on_progress=own)
            results.append(look_closer(run.folder, scenes, size, own))
    for number, result in enumerate(results):
        print_result(number, result, config=runs / f"demo-victim{number}.toml")
    for line in compare_with_recorded([printed_rates(r) for r in results], size) if seed == 0 else ():
        console.print(line, soft_wrap=True, highlight=False)
    print_commands(results[0].run, runs, mlflow)
    return results


def _prefix(on_progress: Progress, prefix: str) -> Progress:
    return lambda task, done, total, note="": on_progress(f"{prefix}: {task}", done, total, note)


def print_result(number: int, result: Result, config: Path) -> None:
    """Print the table of one victim."""
    precision = [f"{result.precision[c]:.3f}" for c in result.rates.rates]
    step = result.run.checkpoint_step("best")
    title = f"Victim {number}: attack success on held-out scenes at score 0.5, best checkpoint (step {step})"
    console.print()
    console.print(success_table(title, result.rates, {"AP50": precision}))
    console.print(
        f"AP50 without a patch: {result.clean_precision:.3f} on the scenes as they are, "
        f"{result.precision[NONE]:.3f} through the camera",
        soft_wrap=True,
    )
    if result.shares:
        pairs = zip(result.shares, result.area[PATCH], strict=True)
        sizes = ",  ".join(f"{100 * share:.0f} % -> {percent(rate).strip()}" for share, rate in pairs)
        console.print(f"share of the box covered (median) -> success %: {sizes}", soft_wrap=True)
    console.print(f"run folder: {result.run.folder}", soft_wrap=True)
    console.print("  figures/demo.png  figures/curves.png  patch/*.png  tables/test.csv", soft_wrap=True)
    console.print(f"  train it again, or with other settings: fpatch train {typed(config)}", soft_wrap=True)


def print_commands(run: Run, runs: Path, mlflow: str | bool) -> None:
    """Print the commands to run next."""
    from fpatch.log.sinks import tracking_uri

    uri = tracking_uri(run.folder, mlflow)
    console.print("\nlook at it", style="bold")
    console.print(f"  tensorboard --logdir {runs}", soft_wrap=True)
    console.print(f"  mlflow ui --backend-store-uri {uri}", soft_wrap=True)
    console.print(f"  fpatch replay {typed(run.folder)} --rows 0:16 --verify", soft_wrap=True)
