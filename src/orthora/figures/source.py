"""Collects what figures draw from: run folders and tables of `orthora measure` -> one table.

The columns are those of `orthora.table`, and three more: ``label`` (what a legend says: method and
setting), ``setting`` (learning rate, and whatever else differs between the runs except the seed)
and ``seed``. Rows of training have layer -1 and no module; rows of weights always have a module.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from orthora.evaluations import EvalView, load_evaluations
from orthora.figures.folders import Source, find
from orthora.figures.measured import Measured
from orthora.figures.style import setting_key
from orthora.table import BASE, Row, frame

Frame = Any
"""A pandas DataFrame; pandas' own annotations don't say what an index picks."""
_CHECKPOINT = re.compile(r"(?:checkpoint|global_step|step)[-_]?(\d+)")


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
    for root in dict.fromkeys((*runs, *(one.folder for one in sources))):
        for view in load_evaluations(root):
            rows += _evaluation_rows(view, (root / view.folder).resolve(), sources)
    rows += [row for folder, name in starts.items() for row in _start_rows(folder, name)]
    measured = Measured(sources)
    measured.add_tables(tables)
    parts = [frame(rows), *measured.parts]
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
    step = _step_of(subject, place, source)
    if step is None:
        return []
    low, high = view.scores["interval"]
    values = (("", view.scores["pass_at_1"]), ("_low", low), ("_high", high))
    return [
        row
        for end, value in values
        for row in _row(source, step, f"pass_at_1{end}/{view.task}", value)
    ]


def _step_of(subject: Path, place: Path, source: Source) -> int | None:
    """Training steps done of what was evaluated; None if no record says.

    Folders ``checkpoint-N`` count updates of the optimizer, several of which make a step.

    Args:
        subject: what was evaluated, a checkpoint or the end of a run.
        place: folder of the evaluation; `orthora eval` calls it ``step-N``.
        source: the run.
    """
    run = source.folder.resolve()
    found = _CHECKPOINT.fullmatch(subject.name)
    if subject == run or found is None:
        return int(source.view.result.get("steps") or 0)
    if not subject.name.startswith("checkpoint"):
        return int(found[1])
    for checkpoint in (subject, run / "checkpoints" / subject.name):
        if checkpoint.is_dir():
            from orthora.trained import MARKER, damage, step_of  # loads the model libraries

            if (checkpoint / MARKER).is_file() and damage(checkpoint) is None:
                return step_of(checkpoint)
    named = re.fullmatch(r"step-(\d+)", place.name)
    return int(named[1]) if named else _step_after(int(found[1]), source.view.config)


def _step_after(updates: int, config: Mapping[str, Any]) -> int | None:
    """Training steps that some updates make, if the config says."""
    try:
        epochs, prompts, batch = (
            int(config[key]) for key in ("update_epochs", "prompts_per_step", "mini_batch_prompts")
        )
        step, rest = divmod(updates, epochs * prompts // batch)
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    return None if rest else step


def _start_rows(folder: Path, name: str) -> list[Row]:
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
    return [Row(name, method, 0, -1, "", k, nowhere, float(v)) for k, v in values.items()]


def _labelled(table: Frame, sources: Sequence[Source]) -> Frame:
    """The table with the columns that say what a legend does."""
    known = {one.name: one for one in sources}
    one_setting = len({one.setting for one in sources}) == 1
    shown = {one.name: "" if one_setting else one.setting for one in sources}
    labels = {
        name: f"{one.view.method or name} {shown[name]}".strip() for name, one in known.items()
    }
    added = {}
    for run in table["run"].unique():
        source = known.get(run)
        other = f"{run} (table)" if run in labels.values() else run
        label, setting = (labels[run], source.setting) if source else (other, "")
        added[run] = (label, setting, source.view.seed if source else -1)
    for place, column in enumerate(("label", "setting", "seed")):
        table[column] = table["run"].map({run: values[place] for run, values in added.items()})
    return table


def order_of(table: Frame) -> list[tuple[str, str, str]]:
    """Label, method and setting of every group of runs, the base left out, in a fixed order."""
    known = table.loc[table["run"] != BASE, ["label", "method", "setting"]].drop_duplicates()
    found = [(str(a), str(b), str(c)) for a, b, c in known.itertuples(index=False)]
    return sorted(found, key=lambda g: (g[1], setting_key(g[2]), g[0]))
