"""Evaluation folders as rows of a table."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthora.runs import Interval, pass_text

Table = Mapping[str, Any]


@dataclass(frozen=True)
class EvalView:
    """One evaluation as read from disk.

    Attributes:
        folder: relative to where it was looked for.
        config: of the evaluation.
        scores: what `orthora.evaluate.EvalResult` holds.
    """

    folder: str
    config: Table
    scores: Table

    @property
    def subject(self) -> str:
        """What was evaluated."""
        return str(self.config.get("adapter") or self.config.get("model"))

    @property
    def task(self) -> str:
        """The task, or the file."""
        name = self.config["task"]
        return str(self.config["data"]) if name == "file" else str(name)


def load_evaluations(folder: Path | str) -> list[EvalView]:
    """Read the evaluations up to four folders below one.

    Args:
        folder: where to look.

    Returns:
        By task and folder name.

    Raises:
        ValueError: naming a file that is corrupt.
    """
    root = Path(folder)
    found = []
    for depth in ("*", "*/*", "*/*/*", "*/*/*/*"):
        for path in sorted(root.glob(f"{depth}/scores.json")):
            if (path.parent / "problems.jsonl").is_file():  # else another tool's file
                found.append(_load(path, str(path.parent.relative_to(root))))
    return sorted(found, key=lambda view: (view.task, view.folder))


def _load(path: Path, name: str) -> EvalView:
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        view = EvalView(name, scores["config"], scores)
        for _, cell in EVAL_COLUMNS:
            cell(view)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        why = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is corrupt: {why}; write it again with orthora rescore {path.parent}"
        ) from error
    return view


def _interval(view: EvalView) -> Interval:
    low, high = view.scores["interval"]
    return float(low), float(high)


def _most(view: EvalView) -> str:
    at = view.scores["pass_at_k"]
    most = max(at, key=int)
    return f"{at[most]:.3f} (k = {most})"


def _rules(view: EvalView) -> str:
    differ = view.scores["disagreement"]
    return "one rule" if differ is None else f"{differ:.1%}"


def _seen(view: EvalView) -> str:
    found = view.scores["contamination"]
    if found is None or "error" in found:
        return "not looked for"
    return str(sum(found["found"].values()))


EVAL_COLUMNS: tuple[tuple[str, Callable[[EvalView], str]], ...] = (
    ("Evaluation", lambda view: view.folder),
    ("Model", lambda view: view.subject),
    ("Task", lambda view: view.task),
    ("Problems x samples", lambda view: f"{view.scores['problems']} x {view.scores['samples']}"),
    ("Pass@1", lambda view: pass_text(view.scores["pass_at_1"], _interval(view))),
    ("Pass@k", _most),
    ("Cut at the limit", lambda view: f"{view.scores['truncated']:.1%}"),
    ("No answer", lambda view: f"{view.scores['no_answer']:.1%}"),
    ("No score", lambda view: str(view.scores["unscored"])),
    ("Rules differ on", _rules),
    ("In training data", _seen),
)
"""Heading and cell text, for the terminal and the page alike."""
