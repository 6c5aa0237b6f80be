"""Checkpoints at rollout boundaries that resume bit for bit.

A checkpoint is the folder that transformers' trainer writes (adapter in PEFT's form, optimizer,
schedule, random states), and beside these what makes it exact: every trained and frozen tensor of
the adapter, the position in the prompt stream, groups left over by dynamic sampling, and AdaLoRA's
running importances. Its marker is written last and names all files with their sizes: a folder
without one, or with a file missing or cut, is not picked up.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from orthora.adapters import own_parameters, upkeep_state
from orthora.config import TrainConfig
from orthora.store import write_json
from orthora.strict import differences
from orthora.train.control import Setting
from orthora.train.rollouts import Answer, Group
from orthora.trained import MARKER as MARKER
from orthora.trained import TENSORS, load_exact
from orthora.trained import damage as damage
from orthora.trained import step_of as step_of
from orthora.watch import rules_of

_SURPLUS = "surplus.pt"
_FREE = ("out", "watch", "watch_action", "watch_rollbacks", "save_every", "keep_checkpoints")
"""Settings that say nothing of what is trained."""


def is_saved(trainer: Any) -> bool:
    """Whether there is a checkpoint of this step already, with a marker."""
    return (_folder(trainer) / MARKER).is_file()


def complete(trainer: Any) -> None:
    """Write the exact state into the checkpoint that was just saved, then its marker; rotate.

    Args:
        trainer: an `RLVRTrainer` at a rollout boundary.
    """
    folder = _folder(trainer)
    world = trainer._world
    values: dict[str, Any] = {}
    state = trainer.collector.state()
    with world.together():  # everybody's random state is on the disk before the marker is
        if world.main:
            model = trainer.accelerator.unwrap_model(trainer.model)
            upkeep, values = upkeep_state(model)
            if not trainer._sharded:
                tensors = {f"model/{name}": p for name, p in own_parameters(model)}
                tensors |= {f"upkeep/{name}": value for name, value in upkeep.items()}
                save_file({k: _plain(v) for k, v in tensors.items()}, folder / TENSORS)
            torch.save([_as_dict(group) for group in state["surplus"]], folder / _SURPLUS)
    with world.together():
        if world.main:
            write_json(
                folder / MARKER,
                {
                    "step": trainer.state.global_step // trainer.updates_per_step,
                    "drawn": state["drawn"],
                    "idle": state["idle"],
                    "problems": trainer.collector.stream.fingerprint,
                    "processes": world.size,
                    "threads": torch.get_num_threads(),
                    "setting": asdict(trainer.steering.setting),
                    "lr_scale": trainer.lr_scale,
                    "upkeep": values,
                    "files": {
                        file.name: file.stat().st_size
                        for file in folder.iterdir()
                        if file.is_file() and file.name != MARKER
                    },
                    "config": trainer._config.model_dump(mode="json"),
                },
            )
            rotate(folder.parent, trainer._config.keep_checkpoints, _way_back(trainer))


def _way_back(trainer: Any) -> int | None:
    """A step after which, or before, one checkpoint stays: what a rollback may go back to."""
    config = trainer._config
    if config.watch_action != "rollback":
        return None
    longest = max((rule.steps for rule in rules_of(config.watch)), default=1)
    step = trainer.state.global_step // trainer.updates_per_step
    return step + 1 - longest  # the next step's rule may have begun to hold after it


def check_same_config(where: Path, before: dict[str, Any], config: TrainConfig) -> None:
    """A run goes on with the config that it began with.

    Only its folder may differ, and how it is watched and saved.

    Args:
        where: the run or checkpoint, for the message.
        before: the config as it was, as JSON.
        config: the config now.

    Raises:
        ValueError: naming the keys that differ, with both values.
    """
    if changed := differences(before, config, free=_FREE):
        raise ValueError(
            f"{where} was run with another config; these differ: {changed}. Resume with "
            "the config of then (config.toml), or choose another out"
        )


def restore_position(trainer: Any, folder: str | Path) -> dict[str, Any]:
    """Go on in the prompt stream where the checkpoint stands; its marker.

    Raises:
        ValueError: if the folder is no complete checkpoint, or one of another config.
    """
    folder = Path(folder)
    if not (folder / MARKER).is_file():
        raise ValueError(f"{folder} is no complete checkpoint of orthora train (no {MARKER})")
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    check_same_config(folder, marker["config"], trainer._config)
    surplus = torch.load(folder / _SURPLUS, weights_only=True)
    try:
        _check_same_world(folder, marker, trainer)
        groups = [_as_group(entry) for entry in surplus]
        known = {key: marker[key] for key in ("drawn", "idle")}
        scale, setting = float(marker["lr_scale"]), Setting(**marker["setting"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / MARKER} is not whole ({type(error).__name__}: {error}); delete {folder} to "
            "go on from the checkpoint before it"
        ) from error
    trainer.collector.load(known | {"surplus": groups})
    trainer.saved_scale, trainer.steering.setting = scale, setting
    return marker


def _check_same_world(folder: Path, marker: dict[str, Any], trainer: Any) -> None:
    """The problems are the same; where processes or threads are not, say what that costs.

    Raises:
        ValueError: if the problems have changed.
    """
    if marker["problems"] != trainer.collector.stream.fingerprint:
        raise ValueError(
            f"the training problems are not those of {folder}: the data file, its order or the "
            "tokenizer has changed; put them back, or start a new run"
        )
    now = {"processes": trainer._world.size, "threads": torch.get_num_threads()}
    changed = [f"{k} ({marker[k]} then, {v} now)" for k, v in now.items() if marker[k] != v]
    if changed and trainer._world.main:
        warnings.warn(
            f"resuming with other {', '.join(changed)}: the run goes on, but not bit for bit as it "
            "would have",
            stacklevel=2,
        )


def restore_tensors(trainer: Any, folder: str | Path, marker: dict[str, Any]) -> None:
    """Put back the adapter's tensors, bit for bit.

    Raises:
        ValueError: if the checkpoint does not fit the model.
    """
    load_exact(trainer.accelerator.unwrap_model(trainer.model), Path(folder), marker)


def latest(folder: Path) -> Path | None:
    """The newest sound checkpoint in a folder of checkpoints; None if there never was one.

    Raises:
        ValueError: if there are checkpoints, and all of them are damaged.
    """
    found = sorted((p.parent for p in folder.glob(f"checkpoint-*/{MARKER}")), key=_number)
    told = []
    for path in reversed(found):
        reason = damage(path)
        if reason is None:
            if told:
                warnings.warn(f"{'; '.join(told)}; going on from {path.name}", stacklevel=2)
            return path
        told.append(f"{path} is damaged ({reason})")
    if told:
        raise ValueError(f"{'; '.join(told)}; delete it to start the run from its beginning")
    return None


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that a kill left half written."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARKER).is_file():
            shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, keep: int, back: int | None = None) -> None:
    """Delete all but the newest ``keep`` complete checkpoints.

    Args:
        folder: of the checkpoints.
        keep: how many stay.
        back: beside them stays the newest one after this training step, or before.
    """
    found = sorted((path.parent for path in folder.glob(f"checkpoint-*/{MARKER}")), key=_number)
    older = found[:-keep]
    if back is not None:
        last = next(
            (path for path in reversed(found) if not damage(path) and step_of(path) <= back), None
        )
        older = [path for path in older if path != last]
    for path in older:
        (path / MARKER).unlink()  # first: a kill while deleting leaves nothing that looks whole
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole_ranks(model: Any) -> Iterator[None]:
    """Inside, PEFT saves AdaLoRA's triplets as they are: pruned ones grow between two prunings."""
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    if not isinstance(config, AdaLoraConfig):
        yield
        return
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def _folder(trainer: Any) -> Path:
    return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _as_dict(group: Group) -> dict[str, Any]:
    """A group in types that ``torch.load(weights_only=True)`` reads."""
    return {
        "key": group.key,
        "problem": group.problem,
        "prompt": list(group.prompt),
        "answers": [{k: getattr(a, k) for k in Answer.__dataclass_fields__} for a in group.answers],
    }


def _as_group(entry: dict[str, Any]) -> Group:
    answers = tuple(Answer(**answer) for answer in entry["answers"])
    return Group(entry["key"], entry["problem"], tuple(entry["prompt"]), answers)
