"""Folders that figures draw from: the runs and starts in them, their names and settings."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orthora.figures.style import setting_key
from orthora.runs import RunView, load_run

_NEUTRAL = frozenset(
    [
        "out",
        "seed",
        "method",
        "learning_rate",
        "learning_rate_match",
        "schedule",
        "kl_target",
        "device",
        "processes",
        "threads",
        "micro_batch",
        "rollout_batch",
        "fold_adapter",
        "share_prompts",
        "gradient_checkpointing",
        "save_every",
        "keep_checkpoints",
        "watch_action",
        "watch_lr_factor",
        "kl_update_share",
        "kl_base_share",
        "geometry",
        "head_rank",
        "vllm_mode",
        "vllm_url",
        "vllm_memory",
        "vllm_tensor_parallel",
        "start",
        "eval_base",
    ]
)
"""Keys of a config that make no other setting: named already, or without effect on the training."""


_OF_WATCH = {"watch": ("stop", "rollback"), "watch_rollbacks": ("rollback",)}
"""Keys that matter only with these values of ``watch_action``."""


@dataclass(frozen=True)
class Source:
    """A run that figures draw from.

    Attributes:
        name: unique among the runs that are drawn together.
        folder: its folder.
        view: what the folder holds.
        setting: learning rate, and whatever else differs between the runs except the seed.
    """

    name: str
    folder: Path
    view: RunView
    setting: str


def find(paths: Sequence[Path]) -> tuple[list[Source], dict[Path, str]]:
    """The runs in some folders, by method, setting, seed and name; and the starts with their names.

    Raises:
        ValueError: if one is neither run, nor start, nor a folder of runs.
    """
    folders: dict[Path, Path] = {}
    starts: dict[Path, Path] = {}
    for path in paths:
        inside, begun = _inside(path)
        for found, known in ((inside, folders), (begun, starts)):
            for folder in found:
                known.setdefault(folder.resolve(), folder)
    everything = [*folders.values(), *starts.values()]
    names = unique_names([absolute(folder) for folder in everything])
    views = [load_run(folder) for folder in folders.values()]
    sources = [
        Source(*parts)
        for parts in zip(names, folders.values(), views, settings_of(views), strict=False)
    ]
    sources = _apart(sources)
    sources.sort(key=lambda s: (s.view.method, setting_key(s.setting), s.view.seed, s.name))
    return sources, dict(zip(starts.values(), names[len(folders) :], strict=True))


def _inside(path: Path) -> tuple[list[Path], list[Path]]:
    """Folders of finished runs and of starts: the path itself, or what lies directly in it."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give run folders, or a folder of them")
    if (path / "result.json").is_file():
        return [path], []
    inside = [found.parent for found in sorted(path.glob("*/result.json"))]
    if (path / "config.toml").is_file() and not inside:
        raise ValueError(
            f"{path} holds no result.json: the run is unfinished; let it finish "
            "(orthora train --resume), or leave it out"
        )
    records = [path / "orthora.json", *sorted(path.glob("*/orthora.json"))]
    begun = [record.parent for record in records if record.is_file()]
    if not inside and not begun:
        raise ValueError(
            f"{path} holds no result.json, nor does a folder in it; give the folders of "
            "finished runs, or a folder of them"
        )
    return inside, begun


def absolute(path: Path) -> Path:
    """The path from the root, symbolic links kept, so that ``.`` has a name."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib keeps the dots


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as tell the paths apart."""
    depths = [1] * len(paths)
    while True:
        names = ["/".join(p.parts[-depth:]) for p, depth in zip(paths, depths, strict=True)]
        counts = Counter(names)
        equal = [
            i for i, name in enumerate(names)
            if counts[name] > 1 and depths[i] < len(paths[i].parts) - 1
        ]  # fmt: skip
        if not equal:
            return names
        for i in equal:
            depths[i] += 1


def _apart(sources: Sequence[Source]) -> list[Source]:
    """Runs of one method and setting with an equal seed are no seeds: each is named."""
    keys = [(one.view.method, one.setting) for one in sources]
    seeds = Counter((*key, one.view.seed) for key, one in zip(keys, sources, strict=True))
    doubled = {(method, setting) for (method, setting, _), count in seeds.items() if count > 1}
    return [
        replace(one, setting=f"{one.setting}, run {one.name}") if key in doubled else one
        for key, one in zip(keys, sources, strict=True)
    ]


def settings_of(views: Sequence[RunView]) -> list[str]:
    """What tells runs of a method apart, seeds aside: learning rate, and what else differs."""
    tables = [_plain(view) for view in views]
    keys = sorted({key for table in tables for key in table} - _NEUTRAL)
    differing = [k for k in keys if len({table[k] for table in tables if k in table}) > 1]
    texts = []
    for view, table in zip(views, tables, strict=True):
        match = view.config.get("learning_rate_match")
        others = (f"{key} {table[key]}" for key in differing if key in table)
        texts.append(", ".join([f"match-{match}" if match else view.rate, *view.ways, *others]))
    return texts


def _plain(view: RunView) -> dict[str, str]:
    """What of the config is in effect, or what the result repeats of it."""
    known = {key: str(view.result[key]) for key in ("rank", "alpha") if key in view.result}
    known |= {key: str(value) for key, value in view.config.items()}
    action = known.get("watch_action", "warn")
    idle = {key for key, actions in _OF_WATCH.items() if action not in actions}
    return {key: value for key, value in known.items() if key not in idle}
