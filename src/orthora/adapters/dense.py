"""Training in place: full fine-tuning, and the safe mask of entries off the principal part.

The base is kept: `Dense` holds the original values of what trains, so that the reference policy is
at hand without a second model, and the entries outside a mask are put back after every update.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orthora.adapters.checks import asked_for, check_arguments, check_targets, fused_experts
from orthora.adapters.slots import is_linear
from orthora.adapters.wrap import Targets, as_names
from orthora.linalg import reconstruction, smallest_mask, smallest_of, top_subspace
from orthora.methods.structural import SAFE_SHARE

_HANDLE = "orthora_dense"


@dataclass
class Dense:
    """What a model trained in place remembers of its base.

    Attributes:
        originals: base values of the trained parameters, by parameter name.
        masks: for `safe-mask`, True where an entry trains, in the parameter's own layout.
    """

    originals: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)


def train_in_place(model: PreTrainedModel, structure: str, *, rank: int, targets: Targets) -> Dense:
    """Make the weights of the targets trainable, and everything else frozen.

    Args:
        model: the base; its values are not changed.
        structure: ``"full"`` or ``"safe-mask"``.
        rank: of the principal part that the safe mask leaves out.
        targets: names or a pattern; ``"all-linear"`` is every parameter for ``"full"``, the target
            matrices for ``"safe-mask"``.

    Raises:
        ValueError: targets that match nothing, low precision, a tied or fused weight under a mask.
    """
    targets = as_names(targets)
    check_arguments(rank, 1.0, targets, 0.0)
    check_targets(model, targets)
    low = next(((n, p.dtype) for n, p in model.named_parameters() if p.element_size() < 4), None)
    if low is not None:
        raise ValueError(
            f"{structure} trains the weights themselves, and updates of less than 1/256 of an "
            f"entry are lost in {low[1]} ({low[0]!r}); load the model in float32"
        )
    names = _trained_names(model, structure, targets)
    parameters = dict(model.named_parameters())
    masks = {}
    if structure == "safe-mask":
        _check_maskable(model, names)
        for name in names:
            masks[name] = _mask(model, name, parameters[name].detach(), rank)
    dense = Dense({name: parameters[name].detach().clone() for name in names}, masks)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in dense.originals)
        if name in masks:
            parameter.register_hook(masks[name].mul)
    model.__dict__[_HANDLE] = dense  # past nn.Module, which would move and save it
    return dense


def dense_of(model: nn.Module) -> Dense | None:
    """What `train_in_place` left on the model; None for any other model."""
    return model.__dict__.get(_HANDLE)


def forget(model: nn.Module) -> None:
    """Remove what `train_in_place` left, but for the hooks, which freezing makes idle."""
    model.__dict__.pop(_HANDLE, None)


def restore_frozen(model: nn.Module) -> None:
    """Put the entries outside the masks back to the base's; weight decay moves them."""
    dense = dense_of(model)
    if dense is None or not dense.masks:
        return
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in dense.masks.items():
            torch.where(mask, parameters[name], dense.originals[name], out=parameters[name].data)


@contextmanager
def originals_in_place(model: nn.Module, dense: Dense) -> Iterator[None]:
    """Inside, the model is its base; the trained values come back bit for bit."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].data for name in dense.originals}
    try:
        for name, value in dense.originals.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def safe_mask(W: Float[Tensor, "m n"], rank: int, share: float = SAFE_SHARE) -> Bool[Tensor, "m n"]:
    """``M_low or not M_princ`` (Zhu et al. 2025, arXiv 2511.08567, section 4).

    M_princ holds the ``share`` of entries that are largest in the rank-r reconstruction of W, M_low
    the ``share`` that are smallest in W. The paper gives neither k nor alpha of its figures; k = r
    here, and alpha = 0.3 leaves about the 70 % of the entries that it reports.

    Args:
        W: (m, n) weight.
        rank: r of the reconstruction.
        share: alpha, in (0, 1).

    Returns:
        (m, n), True where an entry may train.
    """
    mask = smallest_of(reconstruction(top_subspace(W, rank)), W.numel(), 1.0 - share)  # not M_princ
    mask |= smallest_mask(W, share)
    return mask


def _trained_names(model: PreTrainedModel, structure: str, targets: Targets) -> list[str]:
    """Parameters that train, by the name under which `named_parameters` lists them first."""
    if structure == "full" and targets == "all-linear":
        return [name for name, _ in model.named_parameters()]
    found = []
    for name, module in model.named_modules():
        fits = is_linear(module) or (structure == "full" and targets != "all-linear")
        if fits and asked_for(model, name, targets):
            parts = ["weight"] if structure == "safe-mask" else dict(module.named_parameters())
            found += [f"{name}.{part}" for part in parts]
    listed = dict(model.named_parameters())
    if not found or not all(name in listed for name in found):
        raise ValueError(
            f"target_modules={targets!r} matches no module with weights of its own (tied weights "
            "count where they are listed first); name others"
        )
    return list(dict.fromkeys(found))


def _check_maskable(model: PreTrainedModel, names: list[str]) -> None:
    """Only matrices have a principal part, and a tied one belongs to the embeddings as well."""
    fused = fused_experts(model)
    if fused:
        raise ValueError(
            f"safe-mask does not reach fused experts ({fused[0]!r}); use another structure"
        )
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        if not is_linear(module):
            raise ValueError(f"safe-mask takes linear layers, and {name!r} is of none")


def _mask(model: PreTrainedModel, name: str, stored: Tensor, rank: int) -> Tensor:
    """The mask of one parameter in its own layout."""
    turned = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    try:
        mask = safe_mask(stored.mT if turned else stored, rank)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return (mask.mT if turned else mask).contiguous()
