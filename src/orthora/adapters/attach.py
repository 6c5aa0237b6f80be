"""``orthora.adapt``: put low-rank adapters on a transformers model, started by any method.

The base weights are read, never written. What was built is checked before it is handed back: every
matched module carries the method's factors, each layer computes exactly its base layer's function,
and nothing else trains.
"""

import re
import sys
import warnings
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from torch import Tensor, distributed
from transformers import PreTrainedModel

from orthora import pool
from orthora.adapters import starts
from orthora.adapters.checks import adapted_layers, refuse_unfit, rounded_experts, verify
from orthora.adapters.dense import train_in_place
from orthora.adapters.given import take_start
from orthora.adapters.slots import Slot
from orthora.adapters.starts import How, Start
from orthora.adapters.structures import trained, wrap_structure
from orthora.adapters.wrap import Targets, Unfit, as_names, unwrap, wrap
from orthora.methods import Composition, compose

_SLOW_ELEMENTS = 50_000_000  # above this many weights the start takes seconds: show progress


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was started; `adapt` leaves it on the model as ``model.orthora``.

    Attributes:
        method: canonical name of the composition.
        rank: r.
        alpha: the scale is alpha / rank (alpha / sqrt(rank) with rsLoRA).
        target_modules: as it was asked for.
        seed: of the random methods.
        modules: names of the adapted modules, in model order; for methods that train weights in
            place, of the trained parameters.
        overrides: which of these settings the method does not take; empty if it takes all.
    """

    method: str
    rank: int
    alpha: float
    target_modules: str | tuple[str, ...]
    seed: int
    modules: tuple[str, ...]
    overrides: str = ""


def adapt(
    model: PreTrainedModel,
    method: str = "rlpo",
    *,
    rank: int = 16,
    alpha: float = 32,
    target_modules: Targets = "all-linear",
    seed: int = 0,
    dropout: float = 0.0,
    unfit: Unfit | None = "refuse",
    start: str | Path | None = None,
    total_updates: int | None = None,
) -> Any:
    """Wrap ``model`` with adapters of ``method`` that leave its function unchanged.

    Anchored methods (PiSSA, MiLoRA, OLoRA, GeoRA) compute ``W x + s (B A - B0 A0) x`` with A0, B0
    frozen, instead of subtracting from W. So the start is exact in every dtype, and
    ``disable_adapter()`` is the pretrained model for every method. ``save_pretrained`` on the
    result writes plain PEFT LoRA (rank 2r for anchored methods). A fused projection (Phi's
    ``qkv_proj``) is one matrix and gets one adapter; so does each expert of a fused stack, in
    PEFT's packing. Factors are float32 over any base dtype, and the same bits whatever the number
    of threads. In a distributed job rank 0 computes, and the others receive.

    ``adalora`` and ``safe-mask`` need `orthora.adapters.after_update` after every optimizer update,
    which `orthora.train` calls. ``full`` and ``safe-mask`` train the weights of ``model`` itself:
    it is returned as it is, no ``PeftModel``, and `orthora.adapters.base_policy` shows the base.

    Args:
        model: a transformers model with loaded weights.
        method: a name or alias of `orthora.methods()`, or a composition: ``"rlpo+dora"``,
            ``"rlmo+rslora+lora-plus"``. The optimizer of a composition is the trainer's business.
        rank: r, at most the smaller side of every adapted matrix; see ``unfit``.
        alpha: the scale is ``alpha / rank``.
        target_modules: as PEFT's: ``"all-linear"`` (with fused experts), names, or a regular
            expression.
        seed: of the random methods; each module draws from (seed, its name), so that the order of
            modules does not matter.
        dropout: probability on the adapters' input.
        unfit: modules whose smaller side is below the rank are refused (``"refuse"``), get the
            largest rank that fits at the same scale (``"lower"``), or are left out (``"skip"``);
            None refuses without naming the other two, for callers that don't pass them on.
        start: a folder that ``orthora init`` wrote for this model with the same settings; its
            factors are taken instead of computed.
        total_updates: optimizer updates of the run, over which ``adalora`` plans its pruning.

    Returns:
        A ``PeftModel`` whose only trainable parameters are the method's (``lora_A`` and ``lora_B``
        for an initialisation alone); for ``full`` and ``safe-mask`` the model itself.

    Raises:
        ValueError: unknown method or a pair without a meaning; a target that matches nothing; a
            rank that does not fit, or NaN or Inf, naming the module; quantised or meta weights,
            embeddings, fused experts with an anchored method, a ``start`` of other settings or
            weights, or a model that already carries adapters. The model is then left as it was.
    """
    composition = compose(method)
    refuse_unfit(model)
    if start is not None and not composition.has_factors:
        raise ValueError(f"{composition.name} starts from no factors; leave start out")
    if composition.export == "merged":
        if dropout:
            raise ValueError(f"{composition.name} has no dropout; set it to 0")
        dense = train_in_place(model, composition.structure, rank=rank, targets=target_modules)
        adapted, names = model, tuple(dense.originals)
    elif composition.has_factors:
        adapted, names = _with_factors(
            model,
            composition,
            Settings(rank, alpha, target_modules, seed, dropout),
            unfit,
            start,
        )
    else:
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        adapted = wrap_structure(
            model,
            composition,
            rank=rank,
            alpha=alpha,
            targets=target_modules,
            dropout=dropout,
            seed=seed,
            total_updates=total_updates,
        )
        _verify_or_unwrap(model, adapted, composition, before)
        names = tuple(adapted_layers(adapted))
    targets = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    adapted.__dict__["orthora"] = AdapterRecord(  # past nn.Module, which holds tensors and modules
        composition.name, rank, alpha, targets, seed, names, composition.overrides
    )
    return adapted


@dataclass(frozen=True)
class Settings:
    """What a run decides for every method alike."""

    rank: int
    alpha: float
    targets: Targets
    seed: int
    dropout: float


def _with_factors(
    model: PreTrainedModel,
    method: Composition,
    settings: Settings,
    unfit: Unfit | None,
    start: str | Path | None,
) -> tuple[PeftModel, tuple[str, ...]]:
    """LoRA and its kin, started; the model is left as it was if that fails."""
    rank, alpha, seed = settings.rank, settings.alpha, settings.seed
    trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
    peft_model, slots = wrap(
        model,
        method,
        rank=rank,
        alpha=alpha,
        targets=settings.targets,
        dropout=settings.dropout,
        unfit=unfit,
    )
    try:
        if start is None:
            how = How(method.init.name, method.scale(rank, alpha), seed)
            _start_everywhere(peft_model, slots, how)
        else:
            asked = {"method": method.start, "rank": rank, "alpha": alpha, "seed": seed}
            asked["target_modules"] = as_names(settings.targets)
            take_start(peft_model, slots, start, asked)
        _freeze(peft_model, method)
        verify(peft_model, adapted_layers(peft_model), trained(method))
    except BaseException:
        unwrap(model, trained_before)
        raise
    low = [slot for slot in slots if slot.expert is not None and slot.weight().element_size() < 4]
    if low:
        warnings.warn(rounded_experts(low[0].weight().dtype), stacklevel=3)
    return peft_model, tuple(slot.name for slot in slots)


def _freeze(model: PeftModel, method: Composition) -> None:
    """Freeze the factors that the method does not train: A under LoRA-FA."""
    pattern = re.compile(trained(method))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not pattern.search(name):
            parameter.requires_grad_(False)


def _verify_or_unwrap(
    model: PreTrainedModel, adapted: PeftModel, method: Composition, flags: dict[str, bool]
) -> None:
    """Check what was built, or give the base back as it was: ``flags`` is its requires_grad."""
    try:
        verify(adapted, adapted_layers(adapted), trained(method))
    except BaseException:
        unwrap(model, flags)
        raise


def _start_everywhere(model: PeftModel, slots: list[Slot], how: How) -> None:
    """Start the factors here, or on rank 0 of a distributed job and send them to the others."""
    if not (distributed.is_available() and distributed.is_initialized()):
        _start(slots, how)
        return
    failure: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            _start(slots, how)
        except Exception as error:  # whatever it is: nobody must wait for factors in vain
            failure = error
    told = [None if failure is None else str(failure)]
    distributed.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[0] is not None:
        raise ValueError(told[0])
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or ".anchor_" in name:
            sent = tensor.to(device)
            distributed.broadcast(sent, src=0)
            tensor.copy_(sent)


def _start(slots: list[Slot], how: How) -> None:
    """Compute and write the starting factors: a pool of layers, or batches on a GPU."""
    slots = sorted(slots, key=lambda slot: (starts.cost(slot.shape), _kind(slot)), reverse=True)
    compute = partial(_compute, how)
    if any(slot.weight().is_cuda for slot in slots):
        done = starts.compute_in_batches(slots, _load, compute, alike=_kind, method=how.method)
    else:
        done = pool.compute_all(slots, _load, compute, workers=torch.get_num_threads())
    size = sum(slot.shape[0] * slot.shape[1] for slot in slots)
    quiet = size < _SLOW_ELEMENTS or not sys.stderr.isatty()
    title = f"starting {how.method} adapters"
    console = Console(stderr=True)
    with closing(done):
        for slot, start in track(done, title, total=len(slots), console=console, disable=quiet):
            slot.start(*start.factors)


def _kind(slot: Slot) -> tuple[tuple[int, int], str]:
    return slot.shape, str(slot.weight().device)


def _load(slot: Slot) -> Tensor:
    return slot.weight()


def _compute(how: How, W: Tensor, slot: Slot) -> Start:
    return starts.compute(W, slot.name, slot.rank, how)
