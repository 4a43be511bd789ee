"""Make the folders beside this file, by the code that is checked out: see README.md.

    PYTHONPATH=.:tests/support python tests/recorded/make.py

The study is made, trained and swept in `/fpatch-old`, which the records therefore hold for its path.
"""

import shutil
from pathlib import Path

import torch
from PIL import Image
from study_fixture import make_study

from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.training import train
from fpatch.study.config import load_study
from fpatch.tune import parse_space
from fpatch.tune.folder.journal import Journal
from fpatch.tune.output.sweep_log import SweepLog
from fpatch.tune.plan import Plan, check_plan
from fpatch.tune.settings import Sweep
from fpatch.tune.trials.dispatcher import Dispatcher
from fpatch.tune.trials.trial import run_trial

HERE, OLD = Path(__file__).parent, Path("/fpatch-old")
SMALLER = {
    "shapes = {side = [3, 10, 14], rear = [3, 6, 5]}": "shapes = {side = [3, 5, 7], rear = [3, 3, 3]}",
    "checkpoint_every = 2": "checkpoint_every = 3",
    "num_draws = 2": "num_draws = 1",
}


def make_small_study() -> Path:
    """The tiny study, with patches and photographs that need few bytes."""
    path = make_study(OLD)
    text = path.read_text()
    for before, after in SMALLER.items():
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)
    for photograph in OLD.glob("*.png"):
        with Image.open(photograph) as image:
            levels = [v // 16 * 16 for v in range(256)] * len(image.getbands())
            coarse = image.resize((image.width // 2, image.height // 2)).point(levels)
            coarse.resize(image.size, Image.Resampling.NEAREST).save(photograph, optimize=True)
    return path


def sweep(study: Path, evaluations: int) -> Path:
    """Three trials, of which so many evaluations are made, one trial after the other; then as if killed."""
    settings = Sweep(num_trials=3, search="random")
    plan = Plan(load_study(study), parse_space({"optimizer.learning_rate": (0.01, 0.3, "log")}), settings)
    check_plan(plan)
    journal = Journal.create(plan.study.log.runs, plan.study.name, plan.config)
    log = SweepLog(journal, plan, lambda *_: None)
    dispatcher = Dispatcher(journal, plan, log.notify)
    while evaluations:
        name = dispatcher.take()
        assert name is not None
        for _, point in run_trial(journal.folder, name):
            dispatcher.handle_evaluation(name)
            evaluations -= 1
            print(name, point)
            if not evaluations and point.step < plan.study.train.num_steps:
                break
        else:
            dispatcher.handle_end(name)
    log.close(finished=False)
    return journal.folder


def keep(folder: Path, name: str) -> None:
    """Move a folder here, without what is large: pictures, a table of two, and those of trials."""
    left_out = ("images", "figures", ".lock", "trials/*/tables", "tables/validation-00000003.*")
    for path in [path for pattern in left_out for path in folder.rglob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.move(folder, HERE / name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(OLD, ignore_errors=True)
    path = make_small_study()
    keep(evaluate_run(train(load_study(path)).folder)[0].folder, "run")
    keep(sweep(path, evaluations=5), "sweep")
    shutil.rmtree(OLD / "runs")
    keep(OLD, "study")
