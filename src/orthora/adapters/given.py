"""Starting factors from an adapter folder that `orthora init` wrote, instead of computing them."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file

from orthora.adapters.export import RECORD_NAME
from orthora.adapters.layers import weight
from orthora.adapters.model import STATE_NAME, has_anchor, magnitudes, restore
from orthora.adapters.slots import ADAPTER, Slot
from orthora.checkpoint import tensors_in

_ADAPTER = "adapter_model.safetensors"
_SAME = 1e-2  # of a recorded singular value and the weight's, in any storage precision


def take_start(
    model: PeftModel, slots: list[Slot], folder: str | Path, settings: dict[str, Any]
) -> None:
    """Write the factors and anchors of ``folder`` into a freshly wrapped model.

    Args:
        model: wrapped, not started.
        slots: of the model.
        folder: an adapter folder of `orthora init`.
        settings: method, rank, alpha, target_modules, seed, as they are asked for now.

    Raises:
        ValueError: if the folder is no such adapter, was made with other settings, does not fit the
            model, or belongs to other weights.
    """
    folder = Path(folder)
    try:
        story = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        modules = story["modules"]
        begun = {key: story[key] for key in settings}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no adapter of `orthora init` ({RECORD_NAME})") from error
    if not isinstance(modules, dict):  # `export_plain` lists names alone
        raise ValueError(
            f"{folder} is a trained adapter, not a start of `orthora init`; score it with "
            "`orthora eval --adapter`, or make a start with `orthora init`"
        )
    now = json.loads(json.dumps(settings))
    odd = [f"{key} {begun[key]!r}, not {now[key]!r}" for key in now if begun[key] != now[key]]
    if odd:
        raise ValueError(f"{folder} was started with {'; '.join(odd)}; use the same settings")
    for slot in slots:
        if tuple(modules.get(slot.name, {}).get("shape", ())) != slot.shape:
            raise ValueError(f"{folder} holds no start of {slot.name!r} with shape {slot.shape}")
    file = folder / (STATE_NAME if has_anchor(model) else _ADAPTER)
    if not file.is_file():
        raise ValueError(f"{folder} has no {file.name}; run `orthora init` again")
    tensors_in(file)  # refuses one that is not whole
    restore(model, ADAPTER, magnitudes(model, ADAPTER) | load_file(file))
    for slot in slots:
        _check_weight(slot, modules[slot.name]["subspaces"], folder)


def _check_weight(slot: Slot, subspaces: list[dict[str, Any]], folder: Path) -> None:
    """``|W v|`` of the first row of A is the singular value on record, so W is the same weight.

    Methods without a subspace, or with a masked one, have nothing to compare.
    """
    if len(subspaces) != 1:
        return
    W = slot.weight()
    v = weight(slot.layer.lora_A, ADAPTER).detach()[(slot.expert or 0) * slot.rank].to(W.device)
    found = float((W @ (v / v.norm()).to(W.dtype)).float().norm())
    recorded = subspaces[0]["sigma"][0]
    typical = float(W.norm()) / W.shape[1] ** 0.5  # what rounding of W adds is a share of this
    if abs(found - recorded) > _SAME * max(recorded, typical):
        raise ValueError(
            f"{folder} was started on other weights: {slot.name!r} had a singular value of "
            f"{recorded:.5g} there, and has {found:.5g} in its direction here"
        )
