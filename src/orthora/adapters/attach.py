"""``orthora.adapt``: put low-rank adapters on a transformers model, started by any method.

The base weights are read, never written. What was built is checked before it is handed back: every
matched module carries the method's factors, each layer computes exactly its base layer's function,
and nothing else trains.
"""

import sys
import warnings
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from torch import Tensor, distributed
from transformers import PreTrainedModel

from orthora.adapters import starts
from orthora.adapters.checks import adapted_layers, refuse_unfit, rounded_experts, verify
from orthora.adapters.given import take_start
from orthora.adapters.slots import Slot
from orthora.adapters.starts import How, Start
from orthora.adapters.wrap import Targets, Unfit, as_names, unwrap, wrap
from orthora.methods import registry

_SLOW_ELEMENTS = 50_000_000  # above this many weights the start takes seconds: show progress


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was started; `adapt` leaves it on the model as ``model.orthora``.

    Attributes:
        method: canonical name.
        rank: r.
        alpha: the scale is alpha / rank.
        target_modules: as it was asked for.
        seed: of the random methods.
        modules: names of the adapted modules, in model order.
    """

    method: str
    rank: int
    alpha: float
    target_modules: str | tuple[str, ...]
    seed: int
    modules: tuple[str, ...]


def adapt(
    model: PreTrainedModel,
    method: str = "rlpo",
    *,
    rank: int = 16,
    alpha: float = 32,
    target_modules: Targets = "all-linear",
    seed: int = 0,
    dropout: float = 0.0,
    unfit: Unfit = "refuse",
    start: str | Path | None = None,
) -> PeftModel:
    """Wrap ``model`` with adapters of ``method`` that leave its function unchanged.

    Anchored methods (PiSSA, MiLoRA, OLoRA, GeoRA) compute ``W x + s (B A - B0 A0) x`` with A0, B0
    frozen, instead of subtracting from W. So the start is exact in every dtype, and
    ``disable_adapter()`` is the pretrained model for every method. ``save_pretrained`` on the
    result writes plain PEFT LoRA (rank 2r for anchored methods). A fused projection (Phi's
    ``qkv_proj``) is one matrix and gets one adapter; so does each expert of a fused stack, in
    PEFT's packing. Factors are float32 over any base dtype, and the same bits whatever the number
    of threads. In a distributed job rank 0 computes, and the others receive.

    Args:
        model: a transformers model with loaded weights.
        method: a name or alias of `orthora.methods()`.
        rank: r, at most the smaller side of every adapted matrix; see ``unfit``.
        alpha: the scale is ``alpha / rank``.
        target_modules: as PEFT's: ``"all-linear"`` (with fused experts), names, or a regular
            expression.
        seed: of the random methods; each module draws from (seed, its name), so that the order of
            modules does not matter.
        dropout: probability on the adapters' input.
        unfit: modules whose smaller side is below the rank are refused (``"refuse"``), get the
            largest rank that fits at the same scale (``"lower"``), or are left out (``"skip"``).
        start: a folder that ``orthora init`` wrote for this model with the same settings; its
            factors are taken instead of computed.

    Returns:
        A ``PeftModel`` whose only trainable parameters are ``lora_A`` and ``lora_B``.

    Raises:
        ValueError: unknown method; a target that matches nothing; a rank that does not fit, or NaN
            or Inf, naming the module; quantised or meta weights, embeddings, fused experts with an
            anchored method, a ``start`` of other settings or weights, or a model that already
            carries adapters. The model is then left as it was.
    """
    record = registry.get(method)
    refuse_unfit(model)
    trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
    peft_model, slots = wrap(
        model,
        record,
        rank=rank,
        alpha=alpha,
        targets=target_modules,
        dropout=dropout,
        unfit=unfit,
    )
    try:
        if start is None:
            _start_everywhere(peft_model, slots, How(record.name, alpha / rank, seed))
        else:
            asked = {"method": record.name, "rank": rank, "alpha": alpha, "seed": seed}
            asked["target_modules"] = as_names(target_modules)
            take_start(peft_model, slots, start, asked)
        verify(peft_model, adapted_layers(peft_model))
    except BaseException:
        unwrap(model, trained_before)
        raise
    low = [slot for slot in slots if slot.expert is not None and slot.weight().element_size() < 4]
    if low:
        warnings.warn(rounded_experts(low[0].weight().dtype), stacklevel=2)
    targets = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    names = tuple(slot.name for slot in slots)
    how = AdapterRecord(record.name, rank, alpha, targets, seed, names)
    peft_model.__dict__["orthora"] = how  # past nn.Module, which holds tensors and modules
    return peft_model


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
        done = starts.compute_all(slots, _load, compute, workers=torch.get_num_threads())
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
