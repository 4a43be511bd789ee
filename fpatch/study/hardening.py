"""The plan of a hardening: the study of an attack with the section `[harden]`, and that of its victim."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fpatch.core.checks import check_count, check_number
from fpatch.core.errors import Errors, in_file
from fpatch.core.schema import decode, encode
from fpatch.core.settings import checked_settings
from fpatch.data import TargetSet
from fpatch.study.config import load_study, read_toml, study_from_config, vary
from fpatch.study.splits import check_metric
from fpatch.study.study import Study


@checked_settings
@dataclass(frozen=True)
class Harden:
    """The settings of a hardening, `[harden]` beside the sections of the attack's study.

    Attributes:
        victim: The study (TOML) that trains the victim: one network that is trained, and its losses.
        pool: Patches of a pool.
        rounds: Pools in turn: each is trained against the victim as it is then, and the victim for
            `train.num_steps` of its study.
        share: The share of the rows that carry a patch.
        losses: Weights of the attack's loss terms, one table for each kind of attack; the patches of a pool
            take them in turn. Empty: those of `[objective]` alone.
        fresh_keys: The attacks from scratch with each of the losses that measure a victim in the end.
        fresh_factor: Their steps, in those of the attack's study.
        every: Steps of the victim between two validations; 0: at the end of each round.

    Example:
        >>> from fpatch.study.hardening import Harden
        >>> Harden("victim.toml", pool=4).fresh_factor
        3
    """

    victim: str
    pool: int = 8
    rounds: int = 1
    share: float = 0.5
    losses: tuple[Mapping[str, float], ...] = ()
    fresh_keys: int = 2
    fresh_factor: int = 3
    every: int = 0

    def __post_init__(self) -> None:
        errors = Errors()
        for name in ("pool", "rounds", "fresh_keys", "fresh_factor"):
            errors.check(check_count, f"harden.{name}", getattr(self, name))
        errors.check(check_number, "harden.share", self.share, 0.0, 1.0)
        errors.check(check_count, "harden.every", self.every, 0)
        errors.raise_all()


@dataclass(frozen=True)
class HardenPlan:
    """A hardening: the study of the attack, that of the victim's training, and the settings.

    Raises:
        ValueError: If the attack has not one victim, or the victim's study not one network that is trained.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.hardening import Harden, HardenPlan
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> HardenPlan(study, study, Harden("victim.toml"))
        Traceback (most recent call last):
        ValueError: harden.victim: the study must train one network, got none; make its node ...
    """

    attack: Study
    victim: Study
    harden: Harden

    def __post_init__(self) -> None:
        _ = self.attacked, self.trained
        check_metric(self.attack, "test")

    @cached_property
    def attacked(self) -> str:
        """The path of the victim in the pipeline of the attack."""
        found = [p for p, n in self.attack.pipeline.items() if n.stage.definition.role == "victim"]
        if len(found) != 1:
            raise ValueError(f"harden: the attack must have one victim, got {found or 'none'}")
        return found[0]

    @cached_property
    def trained(self) -> str:
        """The path of the network in the pipeline of the victim's study."""
        nodes = self.victim.pipeline
        found = [p for p, n in nodes.items() if n.stage.definition.weights is not None]
        if len(found) != 1:
            way_out = (
                "make them one module" if found else "make its node by graph.module with trainable = true"
            )
            raise ValueError(
                f"harden.victim: the study must train one network, got {found or 'none'}; {way_out}"
            )
        return found[0]

    @property
    def config(self) -> dict[str, Any]:
        """JSON values of all settings."""
        studies = {"attack": self.attack.config, "victim": self.victim.config}
        return json.loads(json.dumps({**studies, "harden": encode(self.harden)}))


def check_alike(attack: TargetSet, victim: TargetSet) -> None:
    """Refuse data of a victim whose patches or classes are not those of the attack, which number both.

    Raises:
        ValueError: Naming both lists.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.hardening import check_alike
        >>> dataset = tiny_study(tempfile.mkdtemp()).data.open()
        >>> check_alike(dataset, dataset)
    """
    for name, what, was, now in (
        ("patches", "placements are counted", attack.names, victim.names),
        ("classes", "classes are numbered", attack.class_names, victim.class_names),
    ):
        if tuple(was) != tuple(now):
            wanted = json.dumps(list(was))
            raise ValueError(
                f"harden.victim: data.{name} must be those of the attack in the same order, by which {what}: "
                f"{wanted}, got {list(now)}; set data.{name} = {wanted} in the victim's study"
            )


def load_harden_plan(path: str | Path, overrides: Mapping[str, Any] | None = None) -> HardenPlan:
    """Load a study with the section `[harden]`, and the study of its victim.

    Args:
        path: TOML file of the attack's study.
        overrides: Values by dotted name, of the attack's study or of `harden`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a setting is wrong; the message names the file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.hardening import load_harden_plan
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = tiny_study(folder)
        >>> try:
        ...     load_harden_plan(folder / "study.toml")
        ... except ValueError as error:
        ...     print(str(error).rpartition("study.toml: ")[2])
        a hardening needs the section [harden]; add it
    """
    path = Path(path)
    raw, more = read_toml(path), dict(overrides or {})
    try:
        if not isinstance(settings := raw.pop("harden", None), Mapping):
            raise ValueError("a hardening needs the section [harden]; add it")
        own = {name: more.pop(name) for name in [*more] if name.startswith("harden.")}
        settings = {**settings, **{name.partition(".")[2]: value for name, value in own.items()}}
        harden = decode(Harden, settings, "harden")
        attack = study_from_config(raw, path.parent.resolve())
        victim = load_study(path.parent / harden.victim)
        return HardenPlan(vary(attack, more) if more else attack, victim, harden)
    except ValueError as error:
        raise ValueError(in_file(path, error)) from error
