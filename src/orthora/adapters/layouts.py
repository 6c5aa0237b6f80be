"""The weights of a base that saved adapters belong to, from headers alone."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model

from orthora.adapters.slots import slots_of
from orthora.adapters.sources import Origins, Source, meta_model
from orthora.adapters.wrap import wrap
from orthora.checkpoint import Checkpoint
from orthora.methods import compose


class Layouts:
    """The base model's adapted forms, without weights; equal configs share one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Of one base.

        Args:
            checkpoint: of the base.
        """
        self.checkpoint = checkpoint
        self._known: dict[str, dict[str, Source]] = {}

    def of(self, folder: Path, config: PeftConfig) -> dict[str, Source]:
        """Slots of a plain LoRA and their sources, by the name of the weight.

        Raises:
            ValueError: if the base has no such modules.
        """
        config = copy.deepcopy(config)
        key = json.dumps(config.to_dict(), sort_keys=True, default=_text)
        if key not in self._known:
            base = meta_model(self.checkpoint)
            origins = Origins(base, self.checkpoint)
            config.base_model_name_or_path = base.name_or_path  # else PEFT warns of another name
            with fitting(folder), torch.device("meta"):
                model = get_peft_model(base, config, low_cpu_mem_usage=True)
            self._known[key] = {s.name: origins.source(s) for s in slots_of(model)}
        return self._known[key]

    def linear(self) -> dict[str, Source]:
        """All linear weights of the layers and their sources, by name."""
        if "" not in self._known:
            base = meta_model(self.checkpoint)
            origins = Origins(base, self.checkpoint)
            settings: dict[str, Any] = {"rank": 1, "alpha": 1.0, "targets": "all-linear"}
            _, slots = wrap(base, compose("lora"), dropout=0.0, unfit="skip", **settings)
            self._known[""] = {s.name: origins.source(s) for s in slots}
        return self._known[""]


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """PEFT's refusals of an adapter that does not fit the base, in one line."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder} does not fit the base: {line} (give the base it was trained on)"
        ) from error


def _text(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
