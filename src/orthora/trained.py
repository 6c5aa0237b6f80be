"""Models out of run folders: the trained one, and the one at each checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from orthora import models
from orthora.adapters import adapt, check_adapter, load_upkeep_state, own_parameters
from orthora.checkpoint import open_checkpoint
from orthora.config import TrainConfig, build, read_toml

MARKER = "orthora_checkpoint.json"
"""File of a complete checkpoint, written last: step, config, position, names and sizes of files."""
TENSORS = "orthora_exact.safetensors"
"""File of a checkpoint with every tensor of the adapter, trained or frozen."""


def config_of(run: Path) -> TrainConfig:
    """The config of a run folder.

    Raises:
        ValueError: if it is none.
    """
    if not (run / "config.toml").is_file():
        raise ValueError(f"{run} is no run folder (no config.toml)")
    return build(TrainConfig, read_toml(run / "config.toml"))


def base_fingerprint(model: str) -> str | None:
    """A hash of the headers of a model's files; None where they are no safetensors."""
    try:
        return open_checkpoint(model).fingerprint()
    except ValueError:
        return None


def check_finished(run: Path) -> None:
    """The run's adapter is there and whole.

    Raises:
        ValueError: if it is not.
    """
    if not (run / "adapter" / "adapter_config.json").is_file():
        raise ValueError(f"{run} has no finished adapter; let the run finish (--resume)")
    check_adapter(run / "adapter")


def trained_model(run: Path, dtype: str, device: str) -> Any:
    """The trained model of a finished run.

    Args:
        run: its folder.
        dtype: of the base weights.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: if the run is not finished or damaged, or its base can't be loaded.
    """
    config = config_of(run)
    if (run / "model" / "config.json").is_file():
        return models.load_model(str(run / "model"), dtype, device)
    check_finished(run)
    return models.load_adapter(models.load_model(config.model, dtype, device), str(run))


def updates_per_step(config: TrainConfig) -> int:
    """Optimizer updates on each rollout."""
    return config.update_epochs * config.prompts_per_step // config.mini_batch_prompts


def adapted(base: Any, config: TrainConfig) -> Any:
    """A base model with a run's adapter as it begins.

    Args:
        base: the base model; it is changed.
        config: of the run.

    Raises:
        ValueError: as `orthora.adapt`.
    """
    return adapt(
        base,
        config.method,
        rank=config.rank,
        alpha=config.alpha,
        target_modules=config.target_modules,
        seed=config.seed,
        dropout=config.dropout,
        unfit=None,
        start=config.start,
        total_updates=config.steps * updates_per_step(config),
    )


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """The sound checkpoints of a run, finished or not: training steps done, and folder; by step."""
    folders = [marker.parent for marker in run.glob(f"checkpoints/checkpoint-*/{MARKER}")]
    return sorted((step_of(folder), folder) for folder in folders if damage(folder) is None)


def checkpoint_model(checkpoint: Path, dtype: str, device: str, base: str | None = None) -> Any:
    """The model as it was when a checkpoint was written, anchors included.

    Args:
        checkpoint: a folder of `checkpoints_of`.
        dtype: of the base weights.
        device: ``"cpu"`` or ``"cuda"``.
        base: the base model, where it is not to be found under the name that the run gave it.

    Raises:
        ValueError: if the checkpoint is damaged, of a run with sharded weights, or does not fit the
            base model that its run names.
    """
    reason = damage(checkpoint) if (checkpoint / MARKER).is_file() else f"no {MARKER}"
    if reason is not None:
        raise ValueError(f"{checkpoint} is no sound checkpoint of orthora train ({reason})")
    marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    if not (checkpoint / TENSORS).is_file():
        raise ValueError(
            f"{checkpoint} holds weights in shards, which only the run itself can join; finish the "
            "run (--resume) and use its adapter"
        )
    config = build(TrainConfig, marker["config"] | {"start": None})  # all of it is loaded below
    model = adapted(models.load_model(base or config.model, dtype, device), config)
    load_exact(model, checkpoint, marker)
    return model.eval()


def load_exact(model: Any, checkpoint: Path, marker: dict[str, Any]) -> None:
    """Put a checkpoint's adapter tensors into a model that `orthora.adapt` made, bit for bit.

    Args:
        model: of the run's method and config.
        checkpoint: its folder.
        marker: what its marker holds.

    Raises:
        ValueError: if the tensors can't be read, or do not fit the model.
    """
    try:
        tensors = load_file(checkpoint / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint / TENSORS} can't be read: {error}") from error
    targets = {f"model/{name}": p for name, p in own_parameters(model)}
    saved = {name for name in tensors if name.startswith("model/")}
    odd = sorted(saved ^ targets.keys()) or [
        name for name in saved if tensors[name].shape != targets[name].shape
    ]
    if odd:
        raise ValueError(
            f"checkpoint {checkpoint} does not fit this model: {odd[0].removeprefix('model/')!r} "
            "is missing, unknown or of another shape; resume with the model and config of the run"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    upkeep = {k.removeprefix("upkeep/"): v for k, v in tensors.items() if k.startswith("upkeep/")}
    load_upkeep_state(model, upkeep, marker["upkeep"])


def damage(checkpoint: Path) -> str | None:
    """What is missing or cut in a checkpoint that has a marker; None if it is sound."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        files = marker["files"]
        sizes = dict(files.items())
        missing = {"step", "config", "upkeep"} - marker.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} can't be read"
    if missing:
        return f"{MARKER} is cut"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return None


def step_of(checkpoint: Path) -> int:
    """Training steps done when the checkpoint was written."""
    return int(json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["step"])
