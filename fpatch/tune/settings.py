"""The settings of a sweep: the section `[sweep]`."""

import math
from dataclasses import dataclass
from typing import Literal

from fpatch.core.checks import check_count, check_number
from fpatch.core.errors import Errors
from fpatch.tune.search.generations import Population
from fpatch.tune.search.halving import Halving
from fpatch.tune.search.space import Space, combinations


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep.

    Attributes:
        objective: A scalar of the validation, such as "success/patch" or "success/over/noise". In a study
            that makes no patch the default is "right".
        mode: Whether a greater ("max") or a smaller ("min") objective is better.
        num_trials: Number of trials; None with search = "grid": all grid points.
        search: "random"; "grid"; "optuna_gp" and "tpe" of Optuna; "noisy_gp", a Gaussian process that takes
            the standard errors of the objective; "population", training in generations.
        seed: Seed of the search.
        grid_points: Values of each interval in a grid.
        halving: Stop trials that fall behind; None: train all to the end.
        population: Generations of search = "population".
        cpus: CPU cores of each process of a trial.
        gpus: GPUs of each process of a trial: 0, 1, or a fraction to share one GPU.
        processes: Processes that train one trial together, by rows; see `fpatch.runtime.parallel`.
        pack: Trials that one process trains together as one population, on the resources of one trial; 1:
            none. "auto": packs of at most 16 for random and grid searches, if a population can hold them.
        max_concurrent: Trials, or packs, that run at once; None: as many as the resources allow.
        retries: Restarts of a trial whose worker died.
        micro_batch_on_oom: When out of memory, resume from the last checkpoint with half the rows in memory
            at a time (`train.micro_batch`; the update is the same to float tolerance).
        address: Address of a Ray cluster, "auto" or ray://HOST:PORT; None: this machine, on loopback.
        storage: URI such as s3://BUCKET/PREFIX that holds a copy of the sweep's folder, kept up to date;
            `fpatch sweep fetch` downloads it. None: no copy.

    Example:
        >>> from fpatch.tune import Sweep, parse_space
        >>> space = parse_space({"optimizer": {"learning_rate": (0.02, 0.4, "log"), "name": ["adam", "bim"]}})
        >>> Sweep(search="grid", grid_points=3).count(space)
        6
        >>> Sweep(mode="min", num_trials=24).sign
        -1.0
    """

    objective: str = "success/patch"
    mode: Literal["max", "min"] = "max"
    num_trials: int | None = None
    search: Literal["random", "grid", "tpe", "optuna_gp", "noisy_gp", "population"] = "optuna_gp"
    seed: int = 0
    grid_points: int = 3
    halving: Halving | None = None
    population: Population | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    processes: int = 1
    pack: int | Literal["auto"] = "auto"
    max_concurrent: int | None = None
    retries: int = 3
    micro_batch_on_oom: bool = False
    address: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        errors = Errors()
        if self.num_trials is not None:
            errors.check(check_count, "sweep.num_trials", self.num_trials, 1, 10**6)
        elif self.search != "grid":
            errors.add(
                f"sweep.num_trials is required with search = {self.search!r}; only a grid ends without it"
            )
        if (self.search == "population") != (self.population is not None):
            errors.add(
                "sweep.population (size, every) belongs to search = 'population', which needs it; got "
                f"search = {self.search!r} and population = {self.population!r}"
            )
        if self.search == "population" and self.halving is not None:
            errors.add("sweep.halving and sweep.population exclude each other, got both; leave one out")
        errors.check(check_count, "sweep.seed", self.seed, 0, 2**63 - 1)
        errors.check(check_count, "sweep.grid_points", self.grid_points, 2, 10**6)
        errors.check(check_number, "sweep.cpus", self.cpus, 0.0, 10_000)
        errors.check(check_number, "sweep.gpus", self.gpus, 0.0, 10_000)
        if not self.cpus and not self.gpus:
            errors.add("sweep.cpus must be above 0 if sweep.gpus is 0, got 0 for both; set one")
        if 1 < self.gpus <= 10_000:
            errors.add(
                f"sweep.gpus: a process uses one GPU, got {self.gpus:g}; for a trial on {self.gpus:g} GPUs, "
                f"set sweep.processes = {math.ceil(self.gpus)} and sweep.gpus = 1"
            )
        errors.check(check_count, "sweep.processes", self.processes, 1, 10**4)
        if self.pack != "auto":
            errors.check(check_count, "sweep.pack", self.pack, 1, 10**6)
        if self.processes > 1:
            errors.check(self._check_processes)
        errors.check(check_count, "sweep.retries", self.retries, 0, 10**6)
        if self.max_concurrent is not None:
            errors.check(check_count, "sweep.max_concurrent", self.max_concurrent, 1, 10**6)
        errors.raise_all()

    def _check_processes(self) -> None:
        given = f"sweep.processes = {self.processes}"
        if self.pack not in ("auto", 1):
            raise ValueError(f"{given}: a pack has one process, got sweep.pack = {self.pack}; leave one out")
        if 0 < self.gpus < 1:
            raise ValueError(
                f"{given}: processes of one trial cannot share a GPU, got sweep.gpus = {self.gpus:g}; set it "
                "to 0 or 1"
            )
        if self.micro_batch_on_oom:
            raise ValueError(
                f"{given}: a process that runs out of memory cannot continue without the others; leave out "
                "sweep.micro_batch_on_oom, and set train.micro_batch"
            )

    @property
    def sign(self) -> float:
        """The factor that makes a greater objective better: 1 or -1."""
        return 1.0 if self.mode == "max" else -1.0

    def count(self, space: Space) -> int:
        """The number of trials of the whole sweep.

        Raises:
            ValueError: If `num_trials` exceeds the points of a grid.
        """
        if self.search != "grid":
            assert self.num_trials is not None
            return self.num_trials
        points = combinations(space, self.grid_points)
        if self.num_trials is not None and self.num_trials > points:
            raise ValueError(
                f"sweep.num_trials: the grid has {points} points, got {self.num_trials}; leave it out"
            )
        return self.num_trials or points
