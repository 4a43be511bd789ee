"""Words of a command line that no command knows, with the option or the command that is meant."""

import dataclasses
from collections.abc import Sequence

from fpatch.core.checks import nearest

_OTHER_WORDS = {
    "lr": "optimizer.learning_rate",
    "learning_rate": "optimizer.learning_rate",
    "steps": "train.num_steps",
    "epochs": "train.num_steps",
    "iterations": "train.num_steps",
    "batch": "train.batch_size",
    "draws": "evaluate.num_draws",
    "controls": "evaluate.controls.NAME",
    "runs": "log.runs",
    "out_dir": "log.runs",
    "images": "data.placements",
    "patch": "pipeline.NODE.SETTING",
}
"""Settings by the names that other programs give them."""


def refuse_unknown(words: Sequence[str], command: str, takes_settings: bool) -> None:
    """Refuse words that the parser does not know.

    Args:
        words: The words.
        command: The name of the command.
        takes_settings: Whether it takes settings of the study as options.

    Raises:
        ValueError: If there is one; the message names the setting that is meant.

    Example:
        >>> from fpatch.cli.unknown import refuse_unknown
        >>> refuse_unknown(["--lr", "0.1"], "train", True)
        Traceback (most recent call last):
        ValueError: --lr: no such option of fpatch train; did you mean --optimizer.learning_rate?
    """
    if not words:
        return
    word, _, value = words[0].partition("=")
    if not word.startswith("--"):
        given = f"--{word}" if value and "." in word else ""
        way_out = f"an option begins with --: {given} {value}" if given else f"see fpatch {command} --help"
        raise ValueError(f"{words[0]!r:.200}: fpatch {command} takes no such argument; {way_out}")
    name = word[2:].replace("-", "_")
    if not takes_settings:
        is_setting = "." in name or find_settings(name)
        way_out = "it takes the recorded settings" if is_setting else f"see fpatch {command} --help"
        raise ValueError(f"{word:.200}: no such option of fpatch {command}; {way_out}")
    meant = find_settings(name)
    way_out = f"did you mean {' or '.join(f'--{n}' for n in meant)}?" if meant else ""
    way_out = way_out or "a setting has a dotted name, such as --evaluate.num_draws"
    raise ValueError(f"{word:.200}: no such option of fpatch {command}; {way_out}")


def find_settings(name: str) -> list[str]:
    """Return the dotted names of the settings that a name may mean.

    Example:
        >>> from fpatch.cli.unknown import find_settings
        >>> find_settings("num_step"), find_settings("nothing_like_it")
        (['train.num_steps'], [])
    """
    from fpatch.optim.optimizer import Optimizer
    from fpatch.study.settings import DataConfig, EvaluateConfig, LogConfig, TrainConfig

    if name in _OTHER_WORDS:
        return [_OTHER_WORDS[name]]
    sections = {
        "data": DataConfig, "optimizer": Optimizer, "train": TrainConfig, "evaluate": EvaluateConfig,
        "log": LogConfig,
    }  # fmt: skip
    known = [f"{section}.{f.name}" for section, kind in sections.items() for f in dataclasses.fields(kind)]
    last = {setting.partition(".")[2] for setting in known}
    hint = nearest(name, last)
    near = name if name in last else hint.split("'")[1] if hint.startswith("did you mean") else None
    return [setting for setting in known if setting.partition(".")[2] == near]
