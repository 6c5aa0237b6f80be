"""Collects what figures draw from: run folders and tables of `orthora measure` -> one table.

The columns are those of `orthora.table`, and three more: ``label`` (what a legend says: method and
setting), ``setting`` (learning rate, and whatever else differs between the runs except the seed)
and ``seed``. Rows of training have layer -1 and no module; rows of weights always have a module.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from orthora.evaluations import EvalView, load_evaluations
from orthora.figures.style import setting_key
from orthora.runs import RunView, load_run
from orthora.table import BASE, Row, frame, read_table

Frame = Any
"""A pandas DataFrame; pandas' own annotations don't say what an index picks."""
GEOMETRY = "geometry.parquet"
"""Name under which `orthora measure` leaves its table, in a run folder or the folder above."""
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
        "watch",
        "watch_action",
        "watch_lr_factor",
        "watch_rollbacks",
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


@dataclass(frozen=True)
class Source:
    """A run that figures draw from.

    Attributes:
        name: unique among the runs that are drawn together.
        folder: its folder.
        view: what the folder holds.
        setting: see the module.
    """

    name: str
    folder: Path
    view: RunView
    setting: str


def collect(runs: Sequence[Path], tables: Sequence[Path] = (), *, training: bool = True) -> Frame:
    """The table of everything that is known of some runs.

    Args:
        runs: run folders, folders of run folders, and folders of `orthora init`.
        tables: further tables of `orthora measure`, all rows of which are taken.
        training: whether to take the rows of every training step.

    Raises:
        ValueError: naming a folder or file that is missing, empty or corrupt.
    """
    sources, starts = find(runs)
    rows: list[Row] = [row for one in sources for row in _result_rows(one)]
    rows += [row for one in sources if training for row in _step_rows(one)]
    for root in {*runs, *(one.folder for one in sources)}:
        for view in load_evaluations(root):
            rows += _evaluation_rows(view, (root / view.folder).resolve(), sources)
    rows += [row for folder in starts for row in _start_rows(folder)]
    parts = [frame(rows), *_geometry(sources), *map(read_table, tables)]
    whole = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return _labelled(_without_repeats(whole), sources)


def _without_repeats(table: Frame) -> Frame:
    """Every number once; none of the base, and ``attrs["bases"]`` set, if there are two bases."""
    keys = [name for name in table.columns if name != "value"]
    base = table[table["run"] == BASE]
    spread = base.groupby([k for k in keys if k != "method"], dropna=False)["value"].agg(
        lambda values: values.max() - values.min() > 1e-3 * values.abs().max()
    )
    several = bool(spread.any())
    table = (table[table["run"] != BASE] if several else table).drop_duplicates(keys)
    table = table.reset_index(drop=True)
    table.attrs["bases"] = several
    return table


def find(paths: Sequence[Path]) -> tuple[list[Source], list[Path]]:
    """The runs in some folders, by method, setting, seed and name; and the starts among them.

    Raises:
        ValueError: if one is neither run, nor start, nor a folder of runs.
    """
    folders: dict[Path, None] = {}
    starts: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give run folders, or a folder of them")
        inside = [path] if (path / "result.json").is_file() else [
            found.parent for found in sorted(path.glob("*/result.json"))
        ]  # fmt: skip
        records = [path / "orthora.json", *sorted(path.glob("*/orthora.json"))]
        begun = [] if inside == [path] else [r.parent for r in records if r.is_file()]
        if not inside and not begun:
            raise ValueError(
                f"{path} holds no result.json, nor does a folder in it; give the folders of "
                "finished runs, or a folder of them"
            )
        folders |= dict.fromkeys(inside)
        starts |= dict.fromkeys(begun)
    views = [load_run(folder) for folder in folders]
    counts = Counter(folder.name for folder in folders)
    sources = [
        Source(f.name if counts[f.name] == 1 else f"{f.resolve().parent.name}/{f.name}", f, v, s)
        for f, v, s in zip(folders, views, settings_of(views), strict=True)
    ]
    sources.sort(key=lambda s: (s.view.method, setting_key(s.setting), s.view.seed, s.name))
    return sources, list(starts)


def settings_of(views: Sequence[RunView]) -> list[str]:
    """What tells runs of a method apart, seeds aside: learning rate, and what else differs."""
    tables = [_plain(view) for view in views]
    keys = sorted({key for table in tables for key in table} - _NEUTRAL)
    differing = [k for k in keys if len({table[k] for table in tables if k in table}) > 1]
    texts = []
    for view, table in zip(views, tables, strict=True):
        match = view.config.get("learning_rate_match")
        rate = f"match-{match}" if match else view.setting
        texts.append(", ".join([rate, *(f"{k} {table[k]}" for k in differing if k in table)]))
    return texts


def _plain(view: RunView) -> dict[str, str]:
    """The config, or what the result repeats of it."""
    known = {key: str(view.result[key]) for key in ("rank", "alpha") if key in view.result}
    return known | {key: str(value) for key, value in view.config.items()}


def _row(source: Source, step: int, quantity: str, value: Any) -> list[Row]:
    if value is None or isinstance(value, bool):
        return []
    nowhere = float("nan")
    return [Row(source.name, source.view.method, step, -1, "", quantity, nowhere, float(value))]


def _step_rows(source: Source) -> list[Row]:
    """Rows of the metrics log."""
    return [
        row
        for entry in source.view.metrics
        for key, value in entry.items()
        if key != "step"
        for row in _row(source, int(entry["step"]), key, value)
    ]


def _result_rows(source: Source) -> list[Row]:
    """Rows of ``result.json``: scores with their bounds, and what sums the run up."""
    result, rows = source.view.result, []
    step = int(result.get("steps") or 0)
    for prefix, key in (("", "evaluation"), ("base_", "base_evaluation")):
        found = result.get(key)
        if found is not None:
            low, high = found["interval"] or (None, None)
            values = {"pass_at_1": found["pass_at_1"], "pass_at_1_low": low, "pass_at_1_high": high}
            values |= {"eval_problems": found.get("problems"), "eval_samples": found.get("samples")}
            for name, value in values.items():
                rows += _row(source, step, prefix + name, value)
    for name in ("rank", "alpha", "learning_rate", "mean_kl_update", "peak_grad_norm",
                 "trained_parameters"):  # fmt: skip
        rows += _row(source, step, f"run_{name}", result.get(name))
    rows += _row(source, step, "run_seconds", result.get("seconds"))
    return rows + _row(source, step, "run_first_update_norm", result.get("first_update_norm"))


def _evaluation_rows(view: EvalView, place: Path, sources: Iterable[Source]) -> list[Row]:
    """Rows of one folder of `orthora eval`, at the step of the run that it evaluated, if any."""
    adapter = view.config.get("adapter")
    if adapter is None:
        return []
    subject = Path(str(adapter)).resolve()
    for source in sources:
        folder = source.folder.resolve()
        moved = not subject.exists() and folder in place.parents
        if moved or folder in (subject, *subject.parents):
            break
    else:
        return []
    found = re.fullmatch(r"\D*(\d+)", subject.name) if subject.name != folder.name else None
    step = int(found.group(1)) if found else int(source.view.result.get("steps") or 0)
    low, high = view.scores["interval"]
    values = (("", view.scores["pass_at_1"]), ("_low", low), ("_high", high))
    return [
        row
        for end, value in values
        for row in _row(source, step, f"pass_at_1{end}/{view.task}", value)
    ]


def _start_rows(folder: Path) -> list[Row]:
    """Rows of one folder of `orthora init`, whose record says what it cost."""
    path = folder / "orthora.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "seconds" not in record:  # an adapter that a training run left
            return []
        cpu = sum(float(module["seconds"]) for module in record["modules"].values())
        values = {"init_seconds": float(record["seconds"]), "init_cpu_seconds": cpu,
                  "init_weights": len(record["modules"]), "init_rank": record["rank"]}  # fmt: skip
        method = str(record["method"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is corrupt: {why}; write it again with orthora init") from error
    nowhere = float("nan")
    return [Row(folder.name, method, 0, -1, "", k, nowhere, float(v)) for k, v in values.items()]


def _geometry(sources: Sequence[Source]) -> list[Frame]:
    """Rows of the runs in the tables beside them; those in a run's own folder come first."""
    tables: dict[Path, Frame] = {}
    parts = []
    for source in sources:
        taken = False
        for path in (source.folder / GEOMETRY, source.folder.resolve().parent / GEOMETRY):
            if not path.is_file():
                continue
            if path not in tables:
                tables[path] = read_table(path)
            table = tables[path]
            own = table[table["run"] == source.folder.name]
            if len(own) and not taken:
                parts.append(own.assign(run=source.name, method=source.view.method))
                taken = True
            if len(own):
                parts.append(table[table["run"] == BASE])
    return parts


def _labelled(table: Frame, sources: Sequence[Source]) -> Frame:
    """The table with the columns that say what a legend does."""
    known = {one.name: one for one in sources}
    one_setting = len({one.setting for one in sources}) == 1
    names = table[["run", "method"]].drop_duplicates().itertuples(index=False)
    added = {}
    for run, method in names:
        source = known.get(run)
        setting = source.setting if source else ""
        shown = "" if one_setting else setting
        label = f"{method or run} {shown}".strip() if source else run
        added[run] = (label, setting, source.view.seed if source else -1)
    for place, column in enumerate(("label", "setting", "seed")):
        table[column] = table["run"].map({run: values[place] for run, values in added.items()})
    return table


def order_of(table: Frame) -> list[tuple[str, str, str]]:
    """Label, method and setting of every group of runs, the base left out, in a fixed order."""
    known = table.loc[table["run"] != BASE, ["label", "method", "setting"]].drop_duplicates()
    found = [(str(a), str(b), str(c)) for a, b, c in known.itertuples(index=False)]
    return sorted(found, key=lambda g: (g[1], setting_key(g[2]), g[0]))
