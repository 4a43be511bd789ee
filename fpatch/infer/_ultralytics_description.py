"""Descriptions of Ultralytics' networks: parsed once, checked against a list, and handed over as values.

Ultralytics evaluates the entry `activation` as Python and calls any name of its module as a layer, functions
that unpickle or download among them. Its own search may also find another file than the one that is named.
"""

import re
from pathlib import Path
from typing import Any

from fpatch.core.checks import nearest

_LAYERS = {
    "A2C2f", "AConv", "ADown", "AIFI", "Bottleneck", "BottleneckCSP", "C1", "C2", "C2PSA", "C2f",
    "C2fCIB", "C2fPSA", "C3", "C3Ghost", "C3TR", "C3k2", "C3x", "CBFuse", "CBLinear", "Classify",
    "Concat", "Conv", "ConvTranspose", "DWConv", "DWConvTranspose2d", "Detect", "ELAN1", "Focus",
    "GhostBottleneck", "GhostConv", "HGBlock", "HGStem", "Index", "OBB", "OBB26", "PSA", "Pose", "Pose26",
    "RTDETRDecoder", "RepC3", "RepNCSPELAN4", "ResNetLayer", "SCDown", "SPP", "SPPELAN", "SPPF",
    "Segment", "Segment26", "Silence", "nn.AdaptiveAvgPool2d", "nn.AvgPool2d", "nn.BatchNorm2d",
    "nn.Conv2d", "nn.ConvTranspose2d", "nn.Dropout", "nn.Dropout2d", "nn.GELU", "nn.Hardswish",
    "nn.Identity", "nn.LeakyReLU", "nn.MaxPool2d", "nn.Mish", "nn.PixelShuffle", "nn.ReLU", "nn.SiLU",
    "nn.Sigmoid", "nn.Upsample", "nn.ZeroPad2d", "v10Detect",
}  # fmt: skip
"""Layers that compute on tensors only; others download, unpickle, or need a text model."""

_ACTIVATION = re.compile(
    r"(torch\.)?nn\.(CELU|ELU|GELU|Hardswish|Hardtanh|Identity|LeakyReLU|Mish|PReLU|ReLU|ReLU6|SELU|SiLU|Sigmoid"
    r"|Softplus|Tanh)\((ARGUMENT(, ?ARGUMENT)*)?\)".replace(
        "ARGUMENT", r"([a-z_]+=)?(True|False|-?[0-9.]+(e-?[0-9]+)?)"
    )
)
"""The allowed form of the entry `activation`: a layer of torch.nn with plain arguments."""

_ENTRIES = (
    "nc", "scales", "depth_multiple", "width_multiple", "max_channels", "activation", "end2end", "reg_max",
    "kpt_shape", "inplace", "backbone", "head",
)  # fmt: skip
"""The entries that are handed over; a network is built from no other."""

_MAX_BYTES = 1_000_000


def read_description(architecture: str, shipped: Path) -> dict[str, Any]:
    """Read the description of a network.

    Args:
        architecture: The path of a .yaml file, or the name of one that ships with Ultralytics. A size after
            the version, as in yolo11n.yaml, picks a scale of yolo11.yaml.
        shipped: The folder of the descriptions that ship with Ultralytics.

    Raises:
        ValueError: If there is no such file, or it holds anything but known layers with plain arguments.
    """
    if "://" in architecture or not architecture.endswith((".yaml", ".yml")):
        raise ValueError(
            f"ultralytics_model(architecture={architecture!r}) must be the name or path of a .yaml file"
        )
    file = _find(architecture, shipped)
    description = _check(_parse(file), file)
    return description | {"scale": _scale(architecture), "yaml_file": architecture}


def _find(architecture: str, shipped: Path) -> Path:
    """Return the file of a description: the one that is named, or that of its family."""
    path = Path(architecture)
    stem = re.sub(r"^(yolov[58][nslmx])6$", r"\1-p6", path.stem)
    family = re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", stem)
    names = [path.name, *(f"{name}{path.suffix}" for name in (stem, family))]
    candidates = [path.with_name(name) for name in names]
    if path.name == architecture:
        candidates += [found for name in names for found in sorted(shipped.rglob(name))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"ultralytics_model(architecture={architecture!r}) is neither a file nor a description that ships "
        "with the installed Ultralytics; an example is 'yolo11n.yaml'"
    )


def _scale(architecture: str) -> str:
    """Return the size in the name of a network: n, s, m, l, x, or none."""
    found = re.search(r"yolo(e-)?[v]?\d+([nslmx])", Path(architecture).stem)
    return found.group(2) if found else ""


def _parse(file: Path) -> Any:
    import yaml

    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} must hold at most {_MAX_BYTES} bytes; it is no description of a network")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no plain YAML: {error}") from error


def _check(found: Any, file: Path) -> dict[str, Any]:
    """Check every entry of a description, and return those that a network is built from."""
    if not isinstance(found, dict) or not {"nc", "backbone", "head"} <= found.keys():
        raise ValueError(f"{file} must hold the entries nc, backbone and head; it describes no network")
    description = {name: found[name] for name in _ENTRIES if name in found}
    activation = description.get("activation")
    if activation is not None and not _ACTIVATION.fullmatch(str(activation)):
        raise ValueError(
            f"{file}: activation: {activation!r} is no activation of torch.nn with plain arguments, and "
            "would be run; write it like nn.LeakyReLU(0.1)"
        )
    for part in ("backbone", "head"):
        if not isinstance(description[part], list):
            raise ValueError(f"{file}: {part} must be a list of layers, got {description[part]!r:.80}")
        for layer in description[part]:
            _check_layer(layer, f"{file}: {part}")
    rest = {n: v for n, v in description.items() if n not in ("backbone", "head", "scales")}
    scales = description.get("scales") or {}
    if not isinstance(scales, dict) or not all(map(_is_plain, (*rest.values(), *scales, *scales.values()))):
        raise ValueError(f"{file}: entries besides the layers must be numbers, words, or lists of them")
    return description


def _check_layer(layer: Any, where: str) -> None:
    """Check a layer: [from, number, name, arguments]."""
    if not isinstance(layer, list) or len(layer) != 4 or not isinstance(layer[3], list):
        raise ValueError(f"{where}: a layer must be [from, number, name, [arguments]], got {layer!r:.80}")
    origin, number, name, arguments = layer
    if name not in _LAYERS:
        raise ValueError(
            f"{where}: {name!r:.80} is none of the layers that are known to compute on tensors only; "
            f"{nearest(str(name)[:80], _LAYERS)}"
        )
    if not isinstance(number, int) or not _is_plain(origin) or not all(map(_is_plain, arguments)):
        raise ValueError(
            f"{where}: a layer's arguments must be numbers, words, or lists of them, got {layer!r:.80}"
        )


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a word, or a list of them."""
    flat = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, bool | int | float | str) for one in flat)
