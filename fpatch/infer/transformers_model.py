"""Object detectors of Hugging Face transformers, from files or by the library's own download."""

import importlib
import re
from pathlib import Path
from typing import Any

from torch import nn

from fpatch.core.resource import define_loader

_FILES = ("model.safetensors", "config.json")
_ADAPTER = "adapter_config.json"
_CHOICES = ("_attn_implementation", "_experts_implementation")
"""Attributes of a config that may name a repository of compiled code, which transformers would run."""
_OWN = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
"""Choices that are part of transformers and torch; others may be fetched."""


def _load_transformers(
    weights: str | Path | None = None, *, pretrained: str | None = None, revision: str | None = None
) -> nn.Module:
    """Make a detection network in evaluation mode, for `infer.transformers_detector`.

    Weights are safetensors only, and code of a checkpoint is never run.

    Args:
        weights: Path of a model.safetensors with its config.json beside it; nothing is downloaded. Digests
            are recorded of both, and of preprocessor_config.json if it is there.
        pretrained: Instead of `weights`, a name on the Hugging Face hub, such as "hustvl/yolos-tiny".
            transformers downloads and caches it.
        revision: The commit on the hub, all 40 digits: the weights of a branch may change.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If both or none of `weights` and `pretrained` are given, a file is missing or cannot be
            downloaded, or the checkpoint is no object detector.

    Example:
        >>> from fpatch import infer
        >>> commit = "0123456789abcdef0123456789abcdef01234567"
        >>> model = infer.transformers_model(pretrained="hustvl/yolos-tiny", revision=commit)
        >>> model.loader, model.arguments["pretrained"]  # `model.value` downloads it
        ('infer.transformers_model', 'hustvl/yolos-tiny')
    """
    if (weights is None) == (pretrained is None):
        raise ValueError("transformers_model takes either weights (a path) or pretrained (a name on the hub)")
    if pretrained is not None:
        if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
            raise ValueError(
                f"transformers_model(revision) must be the commit of {pretrained}, 40 hexadecimal digits, "
                f"got {revision!r}; https://huggingface.co/{pretrained}/commits/main lists them"
            )
        return _load_model(pretrained, f"{pretrained} at {revision}", revision=revision)
    path = Path(str(weights))
    if path.name != _FILES[0] or not path.with_name(_FILES[1]).is_file():
        raise ValueError(f"weights must be a {_FILES[0]} with its {_FILES[1]} beside it, got {path}")
    if path.with_name(_ADAPTER).exists():
        raise ValueError(
            f"{path.with_name(_ADAPTER)} names other weights, which transformers loads if peft is installed; "
            "merge the adapter into the weights (merge_and_unload), and save them in a folder of their own"
        )
    return _load_model(str(path.parent), str(path.parent), local_files_only=True)


def _load_model(source: str, what: str, **options: Any) -> nn.Module:
    """Make a model for object detection by its name or folder."""
    try:
        library = importlib.import_module("transformers")
        detection_model = library.AutoModelForObjectDetection
    except ImportError as error:
        raise ImportError(
            f"transformers_model needs transformers: pip install 'fpatch[transformers]' ({error})"
        ) from error
    try:
        _refuse_entries(library.PretrainedConfig.get_config_dict(source, **options)[0], what)
        _refuse_code(library.AutoConfig.from_pretrained(source, trust_remote_code=False, **options), what)
        return detection_model.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **options
        ).eval()
    except OSError as error:
        folder = f"https://huggingface.co/{source}/resolve/{options.get('revision')}"
        raise ValueError(
            f"transformers_model cannot get {what}; without network fetch {folder}/{_FILES[0]} and "
            f"{folder}/{_FILES[1]} into one folder elsewhere and give weights='<folder>/{_FILES[0]}' "
            f"({str(error).splitlines()[0]})"
        ) from error
    except _CodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{what} is no object detector: {str(error).splitlines()[0]}") from error


class _CodeError(ValueError):
    """A config names code that would run."""


def _refuse_choice(name: str, value: Any, what: str) -> None:
    for choice in value.values() if isinstance(value, dict) else (value,):
        if choice is not None and choice not in _OWN:
            raise _CodeError(
                f"{what}: config.json asks for code outside of transformers ({name.strip('_')} = "
                f"{choice!r}), and no code of a checkpoint is run; remove the entry"
            )


def _refuse_entries(raw: Any, what: str) -> None:
    """Refuse a file, or a part of one, that names code; some versions of transformers ignore the entry."""
    for name, value in raw.items():
        if name.strip("_") in {choice.strip("_") for choice in _CHOICES}:
            _refuse_choice(name, value, what)
        elif isinstance(value, dict):
            _refuse_entries(value, what)


def _refuse_code(config: Any, what: str) -> None:
    """Refuse a config, or a part of one, that names code of a repository.

    Raises:
        ValueError: If it does.
    """
    quantized = getattr(config, "quantization_config", None)
    named = [(name, getattr(config, name, None)) for name in _CHOICES]
    for name, value in (*named, ("quantization_config", quantized and str(quantized))):
        _refuse_choice(name, value, what)
    for part in vars(config).values():
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            _refuse_code(part, what)


def _other_files(weights: str, **arguments: Any) -> tuple[str, ...]:
    """The files beside the weights that decide what the network is, and how its images were prepared."""
    return (_FILES[1], "preprocessor_config.json")


transformers_model = define_loader("transformers_model", _load_transformers, _other_files)
