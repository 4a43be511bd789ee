"""Checkpoints of a run folder: states of training as `checkpoints/<name>.safetensors`.

`training.py` writes them and resumes from them. The header of a checkpoint holds the digests of its tensors,
of itself, of the records up to its step and of the numbered checkpoint before it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.files import digest
from fpatch.core.inputs import parse_json
from fpatch.core.names import check_file_name, typed
from fpatch.core.schema import decode
from fpatch.core.tree import tensor_bytes
from fpatch.log.records import Mark
from fpatch.optim.step import TrainState
from fpatch.runs.files import FORMAT, is_sealed_run, read_header, read_tensors, write_file
from fpatch.runs.locks import RunError


class Link(NamedTuple):
    """A numbered checkpoint, as a later one names it.

    Attributes:
        step: Its step.
        state: The digest of its tensors.
    """

    step: int
    state: str


class Header(NamedTuple):
    """The header of a checkpoint.

    Attributes:
        step: The updates that led to it.
        facts: The best validation so far.
        state: The digest of the tensors; None in a file of an older version, as all below.
        records: The end of the records of its step.
        previous: The numbered checkpoint before it.
        numbered: Whether it is also a numbered checkpoint.
    """

    step: int
    facts: dict[str, Any]
    state: str | None = None
    records: Mark | None = None
    previous: Link | None = None
    numbered: bool = True


def save_checkpoint(
    folder: Path,
    names: str | Sequence[str],
    state: TrainState,
    facts: Mapping[str, Any],
    records: Mark | None = None,
) -> str:
    """Write a state as one file of tensors, with `facts` (JSON) and the step in its header.

    Args:
        folder: The run folder.
        names: The names of the checkpoint; each becomes a file, in this order.
        state: The state.
        facts: The best validation so far.
        records: The end of the records of its step.

    Returns:
        The digest of the tensors.
    """
    names = [names] if isinstance(names, str) else names
    last = read_header_of(folder, "last") if has_checkpoint(folder, "last") else None
    previous = None if last is None else last.previous
    if last is not None and last.numbered and last.state is not None and last.step < state.step:
        previous = Link(last.step, last.state)
    tensors, is_numbered = _name_tensors(state), any(name.startswith("step-") for name in names)
    header = Header(state.step, dict(facts), tensors_digest(tensors), records, previous, is_numbered)
    data = _encode(tensors, header)
    for name in names:
        write_file(folder / _file_name(name), data)
    assert header.state is not None
    return header.state


def make_last(folder: Path, name: str, records: Mark) -> Header:
    """Make a checkpoint the last one, after the present records; return its header.

    Raises:
        RunError: If it is missing or broken.
    """
    tensors, header = _read(folder, name)
    now = header._replace(state=tensors_digest(tensors), records=records)
    write_file(folder / _file_name("last"), _encode(tensors, now))
    return now


def copy_checkpoint(folder: Path, name: str, to: str) -> None:
    """Copy a checkpoint under another name."""
    write_file(folder / _file_name(to), (folder / _file_name(name)).read_bytes())


def state_bytes(state: TrainState, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode the tensors of a state as a safetensors file with this header."""
    return tensor_bytes(_name_tensors(state), metadata or {})


def state_digest(state: TrainState) -> str:
    """Return the digest of the tensors of a state, as the header of its checkpoint holds it."""
    return tensors_digest(_name_tensors(state))


def load_checkpoint(folder: Path, name: str, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Load a state with the structure of `like`, on its devices, and its facts.

    Raises:
        RunError: If it is missing, broken, or of another structure (with the first difference).
    """
    tensors, header = _read(folder, name)
    for n, v in _name_tensors(like).items():
        found = None if n not in tensors else list(tensors[n].shape)
        if found != list(v.shape):
            raise RunError(
                f"checkpoint {name!r} of {folder}: {n} must have shape {list(v.shape)} by the config, got "
                f"{found}; resume with the config of the run"
            )
        if tensors[n].dtype != v.dtype:
            raise _broken(folder, name, f"{n} must be {v.dtype}, got {tensors[n].dtype}")
        tensors[n] = tensors[n].to(v.device)
    leaves, tree = optree.tree_flatten(like.opt_state)
    params, fixed = (
        {n: tensors[f"{kind}/{n}"] for n in own}
        for kind, own in (("params", like.params), ("fixed", like.fixed))
    )
    opt_state: Any = optree.tree_unflatten(tree, [tensors[f"opt/{i}"] for i in range(len(leaves))])
    return TrainState(params, opt_state, header.step, tensors["key"], fixed), header.facts


def checkpoint_step(folder: Path, name: str) -> int:
    """Return the number of updates that led to a checkpoint.

    Raises:
        RunError: If it is missing or broken.
    """
    return read_header_of(folder, name).step


def read_header_of(folder: Path, name: str) -> Header:
    """Read and check the header of a checkpoint; its tensors are not read.

    Raises:
        RunError: If it is missing or broken, or has another format.
    """
    return _parse(folder, name, read_header(folder, _file_name(name)))


def check_checkpoint(folder: Path, name: str) -> Header:
    """Read a checkpoint, and compare its tensors with their digest.

    Raises:
        RunError: If it is missing or broken.
    """
    return _read(folder, name)[1]


def checkpoint_facts(folder: Path, name: str) -> dict[str, Any]:
    """Return the facts of a checkpoint: the best value of the validation, its step, and the score it cost.

    Raises:
        RunError: If it is missing or broken.
    """
    return parse_json(read_tensors(folder, _file_name(name))[1]["facts"])


def load_params(folder: Path, name: str = "best", patches: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Load the parameters of a checkpoint; see `fpatch.Run.load_params`."""
    tensors, _ = _read(folder, name)
    kinds = {n: n.partition("/")[0] for n in tensors}
    params = {n.partition("/")[2]: t for n, t in tensors.items() if kinds[n] in ("params", "fixed")}
    for patch in patches or ():
        if patch not in params:
            known = nearest(patch, params)
            raise RunError(f"checkpoint {name!r} of {folder} has no patch {patch!r}; {known}")
    return params if patches is None else {patch: params[patch] for patch in patches}


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the numbered checkpoints, in order."""
    steps = (p.stem[5:] for p in (folder / "checkpoints").glob("step-*.safetensors"))
    return sorted(int(step) for step in steps if step.isdigit())


def has_checkpoint(folder: Path, name: str) -> bool:
    """Return whether a checkpoint exists."""
    return (folder / _file_name(name)).is_file()


def _file_name(name: str) -> str:
    check_file_name("checkpoint", name, "such as best")
    return f"checkpoints/{name}.safetensors"


def _read(folder: Path, name: str) -> tuple[dict[str, Tensor], Header]:
    tensors, metadata = read_tensors(folder, _file_name(name))
    header = _parse(folder, name, metadata)
    if header.state is not None and header.state != tensors_digest(tensors):
        raise _broken(folder, name, "its tensors do not have the recorded digest")
    return tensors, header


def _parse(folder: Path, name: str, metadata: Mapping[str, str]) -> Header:
    """Check the header of a checkpoint, and read its fields."""
    for field in ("step", "format", "facts"):
        if field not in metadata:
            raise _broken(folder, name, f"its header lacks {field!r}")
    if metadata["format"] != str(FORMAT):
        got = metadata["format"]
        raise _broken(folder, name, f"its format must be {str(FORMAT)!r}, got {got!r}")
    if not (metadata["step"].isascii() and metadata["step"].isdigit() and len(metadata["step"]) < 13):
        raise _broken(folder, name, f"its step must be a whole number from 0, got {metadata['step']!r}")
    sealed = {n: v for n, v in metadata.items() if n != "seal"}
    if ("state" in metadata or "seal" in metadata) and metadata.get("seal") != _seal(sealed):
        raise _broken(folder, name, "its header does not have the recorded digest")
    try:
        read = {n: parse_json(metadata.get(n, "null")) for n in ("facts", "records", "previous", "numbered")}
        facts = read["facts"]
        if not isinstance(facts, dict) or (facts and not isinstance(facts.get("best"), int | float)):
            raise ValueError(f"facts must hold numbers, got {metadata['facts'][:80]}")
        for fact, kind in (("best_step", int), ("best_state", str)):
            if fact in facts:
                decode(kind, facts[fact], fact)
        places = ("records", "previous")
        pair = {n: None if read[n] is None else decode(tuple[int, str], read[n], n) for n in places}
        records = None if pair["records"] is None else Mark(*pair["records"])
        previous = None if pair["previous"] is None else Link(*pair["previous"])
    except (ValueError, TypeError) as error:
        raise _broken(folder, name, f"its header cannot be read: {error}") from error
    step = int(metadata["step"])
    if name.startswith("step-") and name != f"step-{step:08d}":
        raise _broken(folder, name, f"it holds the state of step {step}")
    if not metadata.get("state") and is_sealed_run(folder):
        raise _broken(folder, name, "its header lacks 'state', which every checkpoint records")
    return Header(step, facts, metadata.get("state"), records, previous, read["numbered"] is not False)


def _broken(folder: Path, name: str, what: str) -> RunError:
    return RunError(
        f"{folder / _file_name(name)} is broken ({what}); restore it, or resume from another checkpoint: "
        f"fpatch resume {typed(folder)} --from NAME"
    )


def _encode(tensors: Mapping[str, Tensor], header: Header) -> bytes:
    metadata = {
        "step": str(header.step),
        "format": str(FORMAT),
        "facts": json.dumps(header.facts),
        "state": header.state or "",
        "records": json.dumps(header.records),
        "previous": json.dumps(header.previous),
        "numbered": json.dumps(header.numbered),
    }
    return tensor_bytes(tensors, metadata | {"seal": _seal(metadata)})


def _seal(metadata: Mapping[str, str]) -> str:
    return digest(json.dumps(dict(sorted(metadata.items()))).encode())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of named tensors: names, types, shapes and values."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _name_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return the tensors of a state by their names in the file; those of the optimizer are numbered."""
    tensors = {f"params/{n}": v for n, v in state.params.items()} | {"key": state.key}
    tensors |= {f"fixed/{n}": v for n, v in state.fixed.items()}
    return tensors | {f"opt/{i}": leaf for i, leaf in enumerate(optree.tree_leaves(state.opt_state))}
