"""``orthora.init_adapter``: a started adapter from a checkpoint, without building the model.

Weights are read one by one while others are computed, and factors are written to their final place
as they are done; what is in memory is about one weight per worker. An interrupted start goes on
where it stopped.
"""

import json
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from orthora import __version__, pool
from orthora.adapters import starts
from orthora.adapters.checks import rounded_experts
from orthora.adapters.export import RECORD_NAME
from orthora.adapters.model import STATE_NAME, has_anchor, plain_config
from orthora.adapters.slots import Slot
from orthora.adapters.sources import Origins, Source, meta_model
from orthora.adapters.starts import How, Start
from orthora.adapters.unfinished import Unfinished
from orthora.adapters.wrap import Targets, Unfit, as_names, wrap
from orthora.bar import Progress, Teller
from orthora.checkpoint import Checkpoint, open_checkpoint
from orthora.methods import Composition, compose
from orthora.store import finite

_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class InitResult:
    """What `init_adapter` made.

    Attributes:
        out: the adapter folder.
        modules: of each weight: shape, rank, seconds, norm, and the certificates of its subspaces.
        resumed: how many weights an earlier process had done.
        seconds: wall time of this process's share.
    """

    out: Path
    modules: dict[str, dict[str, Any]]
    resumed: int
    seconds: float


def init_adapter(
    model: str,
    method: str = "rlpo",
    *,
    out: str | Path,
    rank: int = 16,
    alpha: float = 32,
    target_modules: Targets = "all-linear",
    seed: int = 0,
    unfit: Unfit = "refuse",
    device: str = "cpu",
    workers: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> InitResult:
    """Write the adapter that `orthora.adapt` would put on the model, from its files alone.

    The folder is standard PEFT (``init_lora_weights: true``), with ``orthora.json`` beside it. With
    an anchored method it holds the plain rank-2r form, whose function is the base's, and the exact
    factors and anchors in ``orthora_state.safetensors``, which PEFT does not read and orthora's
    models do. The factors are the bits that `orthora.adapt` computes, whatever ``workers`` is.

    Args:
        model: a folder, one ``.safetensors`` file, a hub name, or ``tiny``.
        method: a name or alias of `orthora.methods()`.
        out: a folder that does not exist or is empty.
        rank: r.
        alpha: the scale is ``alpha / rank``.
        target_modules: as for `orthora.adapt`.
        seed: of the random methods.
        unfit: as for `orthora.adapt`.
        device: ``"cpu"`` or ``"cuda"``.
        workers: weights computed side by side, one thread each; by default one per core, as far as
            memory goes.
        report: called in this thread after every weight.

    Returns:
        Where it is, and every weight's figures.

    Raises:
        ValueError: in one line: a missing, corrupt or quantised checkpoint, a target or rank that
            does not fit, NaN or Inf (naming the tensor), or ``out`` in use.
        OSError: if the disk is full or fails.
    """
    begun = time.monotonic()
    composition = _startable(method)
    _check_machine(device, workers)
    checkpoint = open_checkpoint(model)
    job = _Job(
        checkpoint,
        composition,
        {
            "method": composition.start,
            "rank": rank,
            "alpha": alpha,
            "target_modules": _listed(target_modules),
            "seed": seed,
            "unfit": unfit,
        },
    )
    how = How(composition.init.name, composition.scale(rank, alpha), seed)
    job.warn()
    with Unfinished(Path(out), job.plan(device), job.layout.files) as unfinished:
        resumed = len(unfinished.done)
        left = [source for source in job.sources if source.slot.name not in unfinished.done]
        work = {source.slot.name: starts.cost(source.slot.shape) for source in job.sources}
        tell = Teller(report, work, [source.slot.name for source in left])
        with closing(_starts(left, checkpoint, how, device, workers)) as done:
            for source, start in done:
                job.layout.write(unfinished, source.slot, start)
                unfinished.finish(source.slot.name, _entry(source, start))
                tell(source.slot.name)
        seconds = time.monotonic() - begun
        modules = {source.slot.name: unfinished.done[source.slot.name] for source in job.sources}
        unfinished.complete(job.papers(model, device, seconds, modules))
    return InitResult(Path(out), modules, resumed, seconds)


def _listed(targets: Targets) -> Targets:
    """The targets as JSON will hold them."""
    names = as_names(targets)
    return names if isinstance(names, str) else list(names)


def _startable(method: str) -> Composition:
    """The composition, if a folder can hold its start.

    Raises:
        ValueError: if it has no A and B, or more than these.
    """
    composition = compose(method)
    if not composition.has_factors:
        raise ValueError(
            f"{composition.name} needs no start from files ({composition.overrides or 'no A, B'}); "
            "orthora.adapt and orthora train build it at once"
        )
    if composition.has("dora"):
        raise ValueError(
            f"{composition.name}: a start holds A and B alone; start {composition.init.name!r}, "
            f"and pass the folder as start= with method {composition.name!r}"
        )
    return composition


class _Job:
    """What is to be made: the adapted model on the meta device, and where its weights lie."""

    def __init__(
        self, checkpoint: Checkpoint, method: Composition, settings: dict[str, Any]
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        base = meta_model(checkpoint)
        origins = Origins(base, checkpoint)
        self.model, slots = wrap(
            base,
            method,
            rank=settings["rank"],
            alpha=settings["alpha"],
            targets=settings["target_modules"],
            dropout=0.0,
            unfit=settings["unfit"],
        )
        self.sources = [origins.source(slot) for slot in slots]
        self.layout = _Layout(self.model, slots)

    def plan(self, device: str) -> dict[str, Any]:
        """All that decides the result; an interrupted start goes on under the same plan only."""
        return {
            **self.settings,
            "checkpoint": self.checkpoint.fingerprint(),
            "modified": self.checkpoint.modified(),
            "device": device,
            "orthora": __version__,
            "torch": torch.__version__,
        }

    def warn(self) -> None:
        """Of experts in a base of low precision, which is how the checkpoint would be loaded."""
        experts = [source for source in self.sources if source.slot.expert is not None]
        if experts and self.checkpoint.tensors[experts[0].tensors[0]].dtype in ("BF16", "F16"):
            warnings.warn(rounded_experts("the checkpoint's dtype"), stacklevel=3)

    def papers(
        self, model: str, device: str, seconds: float, modules: dict[str, Any]
    ) -> dict[str, str]:
        """The small files beside the factors: PEFT's config, and how it all came about."""
        story = {
            **self.settings,
            "base_model": model,
            "checkpoint": self.checkpoint.fingerprint(),
            "anchored": has_anchor(self.model),
            "device": device,
            "seconds": round(seconds, 3),
            "orthora": __version__,
            "torch": torch.__version__,
            "modules": modules,
        }
        config = plain_config(self.model)
        named = model != "tiny" and not Path(model).is_file()
        config.base_model_name_or_path = model if named else str(self.checkpoint.folder)
        text = json.dumps(finite(story), indent=1, allow_nan=False) + "\n"
        return {"adapter_config.json": _config_text(config), RECORD_NAME: text}


def _check_machine(device: str, workers: int | None) -> None:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available here; use 'cpu'")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers must be at least 1, got {workers!r}")


def _starts(
    sources: list[Source], checkpoint: Checkpoint, how: How, device: str, workers: int | None
) -> Generator[tuple[Source, Start]]:
    """Compute the starts, similar shapes together, the costly ones first."""
    order = sorted(sources, key=lambda source: starts.cost(source.slot.shape), reverse=True)
    compute = partial(_compute, how)
    if device == "cuda":
        return starts.compute_in_batches(
            order,
            lambda source: source.read(checkpoint).cuda(),
            compute,
            alike=lambda source: source.slot.shape,
            method=how.method,
        )
    if workers is None:
        most = max((starts.workspace(source.slot.shape) for source in order), default=0)
        workers = pool.default_workers(most)
    return pool.compute_all(order, lambda source: source.read(checkpoint), compute, workers=workers)


def _compute(how: How, W: Tensor, source: Source) -> Start:
    slot = source.slot
    try:
        return starts.compute(W, slot.name, slot.rank, how)
    except ValueError as error:
        raise ValueError(f"{error} (tensor {', '.join(source.tensors)})") from error


class _Layout:
    """Where the factors of each slot go in the adapter's files."""

    def __init__(self, model: PeftModel, slots: list[Slot]) -> None:
        self.anchored = has_anchor(model)
        self.files: dict[str, dict[str, tuple[int, ...]]] = {_ADAPTER: {}}
        if self.anchored:
            self.files[STATE_NAME] = {}
        for slot in slots:
            m, n = slot.shape
            r = slot.rank * slot.experts
            if not self.anchored:
                self._add(_ADAPTER, slot, ("lora_A", (r, n)), ("lora_B", (m, r)))
                continue
            self._add(_ADAPTER, slot, ("lora_A", (2 * r, n)), ("lora_B", (m, 2 * r)))
            self._add(STATE_NAME, slot, ("lora_A", (r, n)), ("lora_B", (m, r)))
            self._add(STATE_NAME, slot, ("anchor_A", (r, n)), ("anchor_B", (m, r)))

    def _add(self, file: str, slot: Slot, *tensors: tuple[str, tuple[int, int]]) -> None:
        for name, shape in tensors:
            self.files[file][_key(slot, name)] = shape

    def write(self, unfinished: Unfinished, slot: Slot, start: Start) -> None:
        """Write one slot's factors; what stays zero is not written."""
        A, B = (factor.cpu() for factor in start.factors)
        if not self.anchored:  # B = 0
            unfinished.write(_ADAPTER, _key(slot, "lora_A"), A, (slot.expert or 0) * slot.rank)
            return
        # s (B A - B0 A0) = s [B - B0, B0] [A; A - A0], at the start [0, B0] [A0; 0]
        unfinished.write(_ADAPTER, _key(slot, "lora_A"), A)
        unfinished.write(_ADAPTER, _key(slot, "lora_B"), torch.cat([torch.zeros_like(B), B], dim=1))
        for name, factor in (("lora_A", A), ("anchor_A", A), ("lora_B", B), ("anchor_B", B)):
            unfinished.write(STATE_NAME, _key(slot, name), factor)


def _key(slot: Slot, factor: str) -> str:
    return f"{slot.path}.{factor}.weight"


def _entry(source: Source, start: Start) -> dict[str, Any]:
    """What ``orthora.json`` says of one weight."""
    return {
        "shape": list(source.slot.shape),
        "rank": source.slot.rank,
        "tensors": list(source.tensors),
        "seconds": round(start.seconds, 4),
        "norm": start.norm,
        "subspaces": [asdict(certificate) for certificate in start.certificates],
    }


def _config_text(config: LoraConfig) -> str:
    """``adapter_config.json``: what PEFT would save, with sets in a fixed order."""
    table = config.to_dict()
    table.pop("_custom_modules", None)
    fixed = {key: sorted(v) if isinstance(v, set) else v for key, v in table.items()}
    if isinstance(config.lora_alpha, float) and config.lora_alpha.is_integer():
        fixed["lora_alpha"] = int(config.lora_alpha)
    return json.dumps(fixed, indent=2, sort_keys=True) + "\n"
