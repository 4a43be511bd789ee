"""The searches of a sweep on three noisy problems: how far from the best settings they end.

Each search tries the same number of settings, one after another. It sees a noisy value of each and its
standard error. It recommends the trial of the greatest value, as `fpatch sweep best` and Optuna do. The
regret is the true value of the best settings minus that of the recommended ones. `late` is the mean regret of
the last eight trials. Seed s has the same noise for all searches, and differences are within seeds.

The problems and the rules of the verdict were written down before the first run:

- `rate`: the success rate of a sweep, in percent. The settings are numbers, a choice, and a number that only
  one option has. A binomial counts 298 objects; the seed of the training moves the rate too. The standard
  error is that of the count alone.
- `branin`: two numbers. The standard error lies between 2 and 50, and differs between trials.
- `hartmann6`: six numbers. The standard error is 0.3 in all trials.

The intervals hold 95 % of the medians of 10,000 resamples of the seeds. `noisy_gp` is the default only if the
interval of its regret minus that of each sampler of Optuna is below 0 on all problems, over 50 seeds. It
stays at all only if that is true of `branin`, for the regret or for `late`.

    python benchmarks/search.py --repeats 50        # a repeat is a seed; 10 minutes of one core
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from harness import Options, Quartiles, Record, read_options

from fpatch import random
from fpatch.ops.intervals import Z, wilson
from fpatch.tune import parse_space
from fpatch.tune.search.noisy_gp import propose_noisy_gp
from fpatch.tune.search.proposers import Observation, Propose, propose_optuna, propose_random
from fpatch.tune.search.space import Settings, Space

NUM_TRIALS = 24
NUM_OBJECTS = 298
TRAINING = 0.4
"""Standard deviation of the logit of a rate over seeds of the training."""
NUM_RESAMPLES = 10_000

SEARCHES: dict[str, Propose] = {
    "noisy_gp": propose_noisy_gp,
    "optuna_gp": propose_optuna("gp"),
    "tpe": propose_optuna("tpe"),
    "random": propose_random,
}


class Problem(NamedTuple):
    """A noisy function of settings.

    Attributes:
        space: The settings.
        truth: The value without noise; greater is better.
        best: The greatest of these values.
        measure: (value without noise, generator) -> value with noise, and its standard error.
    """

    space: Space
    truth: Callable[[Settings], float]
    best: float
    measure: Callable[[float, np.random.Generator], tuple[float, float]]


RATE = parse_space(
    {
        "optimizer.name": ["adam", "bim", "mifgsm"],
        "optimizer.learning_rate": (0.003, 0.6, "log"),
        "optimizer.momentum": {"low": 0.5, "high": 0.99, "when": {"optimizer.name": "mifgsm"}},
        "train.batch_size": (4, 32, "int"),
        "objective.weights.total_variation": (0.0001, 1.0, "log"),
        "pipeline.implant.scale.low": (0.5, 1.0),
    }
)
OPTIMIZERS = {"adam": (0.05, 2.0), "bim": (0.015, 1.2), "mifgsm": (0.02, 1.8)}
"""The best learning rate of each optimizer, and the logit of the rate there."""


def rate(settings: Settings) -> float:
    """A success rate in percent; greatest with adam, a batch of 32, little variation and scales from 0.75."""
    learning_rate, logit = OPTIMIZERS[settings["optimizer.name"]]
    logit -= 2.5 * math.log10(settings["optimizer.learning_rate"] / learning_rate) ** 2
    logit -= 8.0 * (settings.get("optimizer.momentum", 0.9) - 0.9) ** 2
    logit -= 0.3 * math.log2(32 / settings["train.batch_size"])
    logit -= 0.5 * (math.log10(settings["objective.weights.total_variation"]) + 2.0) ** 2
    logit -= 12.0 * (settings["pipeline.implant.scale.low"] - 0.75) ** 2
    return 100 / (1 + math.exp(-logit))


def count_objects(truth: float, rng: np.random.Generator) -> tuple[float, float]:
    """The rate of one training and one count in percent, and the standard error of the count."""
    logit = math.log(truth / (100 - truth)) + TRAINING * rng.normal()
    count = int(rng.binomial(NUM_OBJECTS, 1 / (1 + math.exp(-logit))))
    found = wilson(np.arange(NUM_OBJECTS) < count, np.arange(NUM_OBJECTS))
    return 100 * found.value, 100 * (found.high - found.low) / (2 * Z)


def branin(settings: Settings) -> float:
    """Minus the function of Branin, on its usual domain."""
    x, y = settings["x"], settings["y"]
    bowl = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return -(bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(settings: Settings) -> float:
    """Minus the six-dimensional function of Hartmann."""
    x = np.array([settings[f"x{i}"] for i in range(6)])
    return float(np.exp(-(A * (x - P) ** 2).sum(axis=1)) @ [1.0, 1.2, 3.0, 3.2])


def unequal(truth: float, rng: np.random.Generator) -> tuple[float, float]:
    """A normal error, whose standard deviation lies between 2 and 50."""
    error = math.exp(rng.uniform(math.log(2.0), math.log(50.0)))
    return truth + error * rng.normal(), error


def equal(truth: float, rng: np.random.Generator) -> tuple[float, float]:
    """A normal error of standard deviation 0.3."""
    return truth + 0.3 * rng.normal(), 0.3


PROBLEMS = {
    "rate": Problem(RATE, rate, 100 / (1 + math.exp(-2.0)), count_objects),
    "branin": Problem(parse_space({"x": (-5.0, 10.0), "y": (0.0, 15.0)}), branin, -0.397887, unequal),
    "hartmann6": Problem(parse_space({f"x{i}": (0.0, 1.0) for i in range(6)}), hartmann6, 3.322368, equal),
}


def regrets(problem: Problem, propose: Propose, seed: int, num_trials: int) -> tuple[float, float]:
    """The regret of the trial with the greatest value, and the mean of the last eight trials."""
    key, seen, truths = random.key(seed), [], []
    for trial in range(num_trials):
        settings = propose(problem.space, seen, key)
        truths.append(problem.truth(settings))
        rng = np.random.default_rng([seed, trial])
        seen.append(Observation(settings, *problem.measure(truths[-1], rng)))
    recommended = int(np.argmax([trial.value for trial in seen]))
    return problem.best - truths[recommended], problem.best - float(np.mean(truths[-8:]))


class Interval(Quartiles):
    """A median with the bounds of its 95 % interval."""

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def median_interval(values: np.ndarray) -> Interval:
    """The median, and its 95 % interval by the bootstrap over seeds."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (NUM_RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Interval(float(low), float(np.median(values)), float(high))


def measure(name: str, options: Options, record: Record) -> None:
    """All searches on a problem."""
    num_trials = 10 if options.small else NUM_TRIALS
    found = {
        search: np.array(
            [regrets(PROBLEMS[name], propose, seed, num_trials) for seed in range(options.repeats)]
        )
        for search, propose in SEARCHES.items()
    }
    for search, (regret, late) in ((search, values.T) for search, values in found.items()):
        figures: dict[str, Any] = {
            "seeds": len(regret),
            "trials": num_trials,
            "regret": median_interval(regret),
            "late": median_interval(late),
        }
        if search != "noisy_gp":
            own_regret, own_late = found["noisy_gp"].T
            figures["noisy_gp_minus_regret"] = median_interval(own_regret - regret)
            figures["noisy_gp_minus_late"] = median_interval(own_late - late)
        record.add(f"{name}, {search}", **figures)


def main(argv: list[str] | None = None) -> None:
    """All problems."""
    options = read_options(__doc__, argv)
    record = Record("search", options)
    for name in PROBLEMS:
        measure(name, options, record)


if __name__ == "__main__":
    main()
