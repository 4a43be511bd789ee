"""Show a patch in the colors of its print, by an ICC profile and a color engine."""

from dataclasses import dataclass, field

from torch import Tensor

from fpatch.core.resource import Resource
from fpatch.core.types import Params, Sample, Values
from fpatch.create.print._icc import Intent, check_intent, icc_profile, proof
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import check_color, map_patches


@dataclass(frozen=True)
class SoftProof:
    """Profile and rendering intent of a soft proof; for `phases={"eval"}`.

    The engine works on 256 levels and passes no gradient; to train through the print, use `proof_table`.

    Attributes:
        profile: `icc_profile("printer.icc")`; by default offset printing on coated paper.
        intent: The rendering intent, which replaces colors that the inks cannot mix.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> blue = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
        >>> printed = create.soft_proof().apply({}, {}, {"patch": {"hood": blue}})["patch"]["hood"].ravel()
        >>> [round(x, 1) for x in printed.tolist()]  # duller than on the screen
        [0.1, 0.3, 0.6]
    """

    profile: Resource = field(default_factory=icc_profile)
    intent: Intent = "relative"
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_intent("soft_proof(intent)", self.intent)


def apply(config: SoftProof, patch_params: Params, sample: Sample, values: Values) -> Values:
    profile = config.profile.value

    def printed(name: str, patch: Tensor) -> Tensor:
        check_color("soft_proof", name, patch)
        return proof(patch, profile, config.intent)

    return {"patch": map_patches("soft_proof", values["patch"], config.only, printed)}


soft_proof = define(
    "soft_proof",
    SoftProof,
    deterministic,
    apply,
    reads=("patch",),
    writes=("patch",),
    vmap=False,
    gradient=False,
)
