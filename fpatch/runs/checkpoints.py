"""Checkpoints of a run folder: states of training as `checkpoints/<name>.safetensors`.

`training.py` writes them and resumes from them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optree
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.names import check_name
from fpatch.optim.step import TrainState
from fpatch.runs.files import FORMAT, read_tensors, tensor_bytes, write_file
from fpatch.runs.locks import RunError


def save_checkpoint(folder: Path, name: str, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Write a state as one file of tensors, with `facts` (JSON) and the step in its header."""
    metadata = {"step": str(state.step), "format": str(FORMAT), "facts": json.dumps(facts)}
    write_file(folder / _file_name(name), state_bytes(state, metadata))


def state_bytes(state: TrainState, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode the tensors of a state as a safetensors file with this header."""
    return tensor_bytes(_name_tensors(state), metadata or {})


def load_checkpoint(folder: Path, name: str, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Load a state with the structure of `like`, on its devices, and its facts.

    Raises:
        RunError: If it is missing, broken, or of another structure (with the first difference).
    """
    tensors, metadata = read_tensors(folder, _file_name(name))
    for n, v in _name_tensors(like).items():
        found = None if n not in tensors else list(tensors[n].shape)
        if found != list(v.shape):
            raise RunError(
                f"checkpoint {name!r} of {folder}: {n} must have shape {list(v.shape)} by the config, got "
                f"{found}; resume with the config of the run"
            )
        tensors[n] = tensors[n].to(v.device)
    leaves, tree = optree.tree_flatten(like.opt_state)
    params = {n: tensors[f"params/{n}"] for n in like.params}
    opt_state: Any = optree.tree_unflatten(tree, [tensors[f"opt/{i}"] for i in range(len(leaves))])
    state = TrainState(params, opt_state, int(metadata["step"]), tensors["key"])
    return state, json.loads(metadata["facts"])


def checkpoint_step(folder: Path, name: str) -> int:
    """Return the number of updates that led to a checkpoint.

    Raises:
        RunError: If it is missing or broken.
    """
    return int(read_tensors(folder, _file_name(name))[1]["step"])


def checkpoint_facts(folder: Path, name: str) -> dict[str, Any]:
    """Return the facts of a checkpoint: the best value of the validation, its step, and the score it cost.

    Raises:
        RunError: If it is missing or broken.
    """
    return json.loads(read_tensors(folder, _file_name(name))[1]["facts"])


def load_params(folder: Path, name: str = "best", patches: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Load the patch parameters of a checkpoint; see `fpatch.Run.load_params`."""
    tensors, _ = read_tensors(folder, _file_name(name))
    params = {n.removeprefix("params/"): t for n, t in tensors.items() if n.startswith("params/")}
    for patch in patches or ():
        if patch not in params:
            known = nearest(patch, params)
            raise RunError(f"checkpoint {name!r} of {folder} has no patch {patch!r}; {known}")
    return params if patches is None else {patch: params[patch] for patch in patches}


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the numbered checkpoints, in order."""
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*.safetensors"))


def has_checkpoint(folder: Path, name: str) -> bool:
    """Return whether a checkpoint exists."""
    return (folder / _file_name(name)).is_file()


def _file_name(name: str) -> str:
    check_name("checkpoint", name)
    return f"checkpoints/{name}.safetensors"


def _name_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return the tensors of a state by their names in the file; those of the optimizer are numbered."""
    tensors = {f"params/{n}": v for n, v in state.params.items()} | {"key": state.key}
    return tensors | {f"opt/{i}": leaf for i, leaf in enumerate(optree.tree_leaves(state.opt_state))}
