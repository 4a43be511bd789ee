"""The boundary around a victim: gradients reach the images and nothing else.

A victim is any module. Inside the boundary, its parameters get no gradient and its state is not written,
under every transformation outside. Its answer leaves the boundary in float32, whatever it computes in.
Operators without `torch.func` support (roi_align, NMS) work under it, because plain autograd runs inside.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from torch import Tensor, nn

from fpatch.core.inner_autograd import Inner, run_inner
from fpatch.core.resource import Resource
from fpatch.core.types import Values
from fpatch.graph.mistakes import find_image
from fpatch.ops.detections import convert_answer, log_scores


def check_victim(stage: str, model: Any) -> nn.Module:
    """Check that a victim cannot change during an attack, and return it.

    Raises:
        ValueError: If it is not a module, or one of its parts is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"{stage}: the model must be a torch.nn.Module, got {type(model).__name__}")
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ValueError(
            f"{stage}: {training!r} is in training mode, where dropout and batch statistics change the "
            "answers; call model.eval() first"
        )
    return model


def check_model(stage: str, model: Any) -> None:
    """Check, when a stage is made, that its model is a network or makes one.

    Raises:
        ValueError: Naming what was given, and the way out.
    """
    if isinstance(model, Resource):
        return
    library = type(model).__module__.partition(".")[0]
    if isinstance(model, nn.Module) and library not in ("kornia", "torchmetrics") and not _is_program(model):
        return
    if isinstance(model, str):
        way = f"name it in infer.torchvision_model(architecture={model!r}, download='DEFAULT')"
    elif isinstance(model, Mapping):
        way = "make the network, call load_state_dict with this, and give the network"
    elif isinstance(model, nn.Module):
        way = "give its network, the attribute `model`" if _is_program(model) else "it is no victim"
    elif callable(model):
        way = "call it, and give the network that it makes; or wrap it in a module"
    else:
        way = "make one, such as infer.torchvision_model(...)"
    got = (
        f"the string {model!r}"
        if isinstance(model, str)
        else getattr(model, "__name__", type(model).__name__)
    )
    raise ValueError(f"{stage}(model) must be a torch.nn.Module or a Resource, got {got}; {way}")


def _is_program(model: nn.Module) -> bool:
    """Return whether it is an object such as Ultralytics' YOLO, which trains and predicts from files."""
    return (
        type(model).__module__.startswith("ultralytics.")
        and hasattr(model, "predict")
        and hasattr(model, "ckpt")
    )


def hint(answer: Any) -> str:
    """Return the way out for an answer of a known form, which the stage does not take."""
    first = answer[0] if isinstance(answer, (list, tuple)) and answer else None
    if isinstance(first, Mapping) and {"boxes", "scores", "labels"} <= {*first}:
        return "it is one of torchvision's detectors: take infer.torchvision_detector(model)"
    if isinstance(answer, Mapping) and {"logits", "pred_boxes"} <= {*answer}:
        return "it is one of transformers' detectors: take infer.transformers_detector(model)"
    return "wrap it in a module that does"


def call(model: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Call a victim without an adapter."""
    return model(images)


def run_victim(
    model: nn.Module, images: Tensor, ask: Callable[[Callable[[Tensor], Any], Tensor], Any] = call
) -> Any:
    """Run a victim; its answer is differentiable in the images only.

    Args:
        model: The victim; its parameters stay frozen.
        images: [b, c, h, w].
        ask: The adapter `(model, images) -> answer`, which runs inside the boundary. It prepares the images
            and decodes the answer.

    Returns:
        The answer of `ask`, a pytree of tensors [b, ...]: numbers in float32 (float64 for images of float64),
        `labels` int64, `valid` bool.

    Raises:
        ValueError: If the images have another form, or no answer depends on them by autograd.

    Example:
        >>> import torch
        >>> from fpatch.infer._boundary import run_victim
        >>> model, images = torch.nn.Conv2d(3, 1, 1).eval(), torch.ones(2, 3, 4, 4, requires_grad=True)
        >>> run_victim(model, images).sum().backward()
        >>> images.grad.shape, model.weight.grad
        (torch.Size([2, 3, 4, 4]), None)
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"image must be float32 [b, 3, h, w] in 0..1, got {find_image(images)}")
    dtype = torch.promote_types(images.dtype, torch.float32)
    if not torch.is_grad_enabled():
        return _answer(model, images, ask, dtype)
    if torch.compiler.is_compiling():  # the compiler cannot trace plain autograd inside a custom function
        frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def frozen_call(x: Tensor) -> Any:
            return torch.func.functional_call(model, frozen, (x,))

        return convert_answer(ask(frozen_call, images), dtype)
    structure: list[Any] = []

    def flat(x: Tensor) -> list[Tensor]:
        leaves, tree = optree.tree_flatten(_answer(model, x, ask, dtype))
        structure[:] = [tree]
        if not any(leaf.requires_grad for leaf in leaves):
            raise ValueError(
                f"{type(model).__name__}: no answer depends on the images by autograd: the model detaches "
                "them or runs under no_grad inside, and a patch would learn nothing"
            )
        return leaves

    outputs: Any = run_inner(Inner(flat, differentiable=(True,), of_rows=True), images)
    return optree.tree_unflatten(structure[0], outputs)


def _answer(
    model: nn.Module,
    images: Tensor,
    ask: Callable[[Callable[[Tensor], Any], Tensor], Any],
    dtype: torch.dtype,
) -> Any:
    """Ask a victim, and convert its answer; name a model of another type, and an answer without tensors."""
    name = type(model).__name__
    try:
        answer = convert_answer(ask(model, images), dtype)
    except RuntimeError as error:
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
        if images.dtype != torch.float32 or own == images.dtype or "type" not in str(error):
            raise
        raise ValueError(
            f"{name}: its weights are {own}, and the images {images.dtype}; give model.float(), or convert "
            "the images in its forward"
        ) from error
    if not all(isinstance(leaf, Tensor) for leaf in optree.tree_leaves(answer)):
        raise ValueError(
            f"{name}: its answer must hold tensors alone, got {describe(answer)}; {hint(answer)}"
        )
    return answer


def describe(answer: Any) -> str:
    """Return the shapes of an answer, for errors."""
    if isinstance(answer, Tensor):
        return str(list(answer.shape))
    if isinstance(answer, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in answer.items()) + "}"
    if isinstance(answer, (list, tuple)):
        return "(" + ", ".join(map(describe, answer)) + ")"
    return type(answer).__name__


def show_logits(config: Any, values: Values, control_values: Values) -> Values:
    """Return the highest logit of every dense box, with the patch and without."""
    return {
        f"logits/{name}": shown["detections"]["dense"]["logits"].amax(-1).flatten()
        for name, shown in (("patch", values), ("none", control_values))
    }


def show_log_scores(config: Any, values: Values, control_values: Values) -> Values:
    """Return the logarithm of the highest score of every dense box, with the patch and without."""
    return {
        f"log_scores/{name}": log_scores(shown["detections"]["dense"]).amax(-1).flatten()
        for name, shown in (("patch", values), ("none", control_values))
    }
