"""What is evaluated: a base model, an adapter on it, a run, or a checkpoint of one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthora import models
from orthora.checkpoint import json_object
from orthora.config import EvalConfig
from orthora.evaluate.contamination import run_of
from orthora.trained import MARKER, check_finished, checkpoint_model, config_of

_SETTINGS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_BLOCK, _BLOCKS = 1 << 16, 64


def _digest(file: Path, digest: Any) -> None:
    """Add a file's name, size and evenly spaced blocks."""
    size = file.stat().st_size
    digest.update(f"{file.name} {size};".encode())
    step = max(_BLOCK, size // _BLOCKS)
    with file.open("rb") as handle:
        for start in range(0, size, step):
            handle.seek(start)
            digest.update(handle.read(_BLOCK))


@dataclass(frozen=True)
class Subject:
    """The model of an evaluation, before it is loaded.

    Attributes:
        model: base model, folder or hub name; of a run that trained the whole model, that model.
        adapter: folder of a PEFT adapter, or None.
        checkpoint: folder of a checkpoint of a run, instead of an adapter.
    """

    model: str
    adapter: Path | None = None
    checkpoint: Path | None = None

    def fingerprint(self) -> str:
        """A hash of the weights as they are on the disk: adapter or checkpoint, and base.

        Of large files 64 blocks of 64 KB are read. A model that is a hub name counts by its name.
        """
        digest = hashlib.sha256()
        for place in (models.resolve(self.model), self.adapter, self.checkpoint):
            files = sorted(Path(place).glob("*")) if place and Path(place).is_dir() else []
            digest.update(b"|" if files or not place else str(place).encode())
            for file in files:
                if file.suffix in (".safetensors", ".bin") or file.name in _SETTINGS:
                    _digest(file, digest)
        return digest.hexdigest()[:32]

    def load(self, dtype: str, device: str) -> Any:
        """The model in evaluation mode.

        Raises:
            ValueError: if it can't be loaded, or the adapter does not fit the base.
        """
        if self.checkpoint is not None:
            return checkpoint_model(self.checkpoint, dtype, device, self.model)
        model = models.load_model(self.model, dtype, device)
        return model if self.adapter is None else models.load_adapter(model, str(self.adapter))


def subject_of(config: EvalConfig) -> Subject:
    """Find what a config names.

    Raises:
        ValueError: if there is no such adapter or run, or it was trained on another base model.
    """
    if config.adapter is None:
        assert config.model is not None, "validated"
        return Subject(config.model)
    given = Path(config.adapter)
    run = run_of(config.adapter)
    if config.model is None and run is None:
        raise ValueError(
            f"adapter {config.adapter!r} is no run folder, which would name its base; give model"
        )
    base = config.model or config_of(run).model if run else config.model
    assert base is not None, "one of them names it"
    if run is not None:
        _check_base(config, str(given), config_of(run).model, base)
    if (given / MARKER).is_file():
        return Subject(base, checkpoint=given)
    if run == given and (given / "model" / "config.json").is_file():
        return Subject(str(given / "model"))
    if run == given:
        check_finished(given)
    folder = given / "adapter" if (given / "adapter").is_dir() else given
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{config.adapter!r} holds no adapter (no adapter_config.json)")
    if run is None:
        recorded = json_object(folder / "adapter_config.json").get("base_model_name_or_path")
        _check_base(config, config.adapter, recorded, base)
    return Subject(base, adapter=folder)


def _check_base(config: EvalConfig, adapter: str, recorded: str | None, base: str) -> None:
    """The base is the one that the adapter was trained on, as far as names tell."""
    if not recorded or config.any_base or models.short_name(recorded) == models.short_name(base):
        return
    raise ValueError(
        f"adapter {adapter!r} was trained on {recorded!r}, and model is {base!r}; give the base it "
        "was trained on, or any_base = true if that is the same under another name"
    )
