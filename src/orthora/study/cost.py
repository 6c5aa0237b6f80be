"""What a study will cost, as far as that can be known before it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orthora.checkpoint import json_object, open_checkpoint
from orthora.study.folder import Work
from orthora.study.plan import Cell
from orthora.study.spec import StudySpec, evaluation_of

_FORWARD, _BACKWARD = 2.0, 4.0
"""Floating-point operations per token and parameter; a frozen base still carries gradients back."""

_SIZES = ("steps", "prompts_per_step", "group_size")


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        responses: that training draws, at least: dynamic sampling draws more.
        tokens: of them, at most: their longest length.
        evaluation_tokens: at most, with those of base models; None where it is the data that say
            how many problems there are.
        flops: of training, at full length and without further draws; None where the model's size
            is unknown. Attention over the context is not counted, and generation is limited by
            memory traffic, not by these.
        seconds: of all cells one after the other; None where nothing is known.
        basis: what the seconds rest on.
    """

    responses: int
    tokens: int
    evaluation_tokens: int | None
    flops: float | None
    seconds: float | None
    basis: str


def cost_of(spec: StudySpec, cells: Sequence[Cell], found: Sequence[Work]) -> Cost:
    """Estimate what all cells cost.

    Args:
        spec: the study.
        cells: of it.
        found: their state: cells that have finished tell the seconds of the others.
    """
    responses = tokens = scored = 0
    flops: float | None = 0.0
    sizes = {model: _parameters(spec, model) for model in {c.settings["model"] for c in cells}}
    each = _evaluation_tokens(spec)
    for cell in cells:
        drawn = math.prod(cell.get(key) for key in _SIZES)
        length = drawn * cell.get("max_response_tokens")
        passes = _FORWARD * 2 + (_FORWARD + _BACKWARD) * cell.get("update_epochs")
        size = sizes[cell.settings["model"]]
        flops = None if flops is None or size is None else flops + size * length * passes
        responses, tokens, scored = responses + drawn, tokens + length, scored + _own_tokens(cell)
    if each is not None:
        scored += each * (len(cells) + len(sizes))  # each base model is scored as well
    seconds, basis = _seconds(spec, cells, found, flops)
    return Cost(responses, tokens, None if each is None else scored, flops, seconds, basis)


def _parameters(spec: StudySpec, model: str) -> float | None:
    """Of a model: as the study says, or counted where its files are at hand."""
    if spec.parameters:
        return spec.parameters
    try:
        return float(sum(math.prod(t.shape) for t in open_checkpoint(model).tensors.values()))
    except ValueError:
        return None


def _evaluation_tokens(spec: StudySpec) -> int | None:
    """Of all evaluations of a cell, at most; None where the number of problems is the data's."""
    total = 0
    for name in spec.evaluations:
        config = evaluation_of(spec, name)
        if not config.problems or not config.max_response_tokens:
            return None
        total += config.problems * config.samples_of() * config.max_response_tokens
    return total


def _own_tokens(cell: Cell) -> int:
    """Of the evaluation at the end of a run itself, at most."""
    turns = 2 if cell.get("eval_base") else 1
    shape = ("eval_problems", "eval_samples", "max_response_tokens")
    return turns * math.prod(cell.get(key) for key in shape)


def _seconds(
    spec: StudySpec, cells: Sequence[Cell], found: Sequence[Work], flops: float | None
) -> tuple[float | None, str]:
    """From cells that have finished, per method and step, else from operations."""
    rates: dict[str, list[float]] = {}
    for work in found:
        if work.cell and work.ending and work.ending.state == "finished":
            file = work.job.run / "result.json"
            result = json_object(file) if file.is_file() else {}
            took, steps = result.get("seconds") or 0.0, result.get("steps")
            if isinstance(steps, int) and steps > 0 and isinstance(took, int | float):
                took = max(took, work.ending.seconds)  # or evaluated later
                rates.setdefault(work.cell.method, []).append(took / steps)
    every = [value for values in rates.values() for value in values]
    if every:
        mean = math.fsum(every) / len(every)
        by_method = {method: math.fsum(values) / len(values) for method, values in rates.items()}
        total = sum(by_method.get(cell.method, mean) * cell.get("steps") for cell in cells)
        return total, f"as the {len(every)} cells that have finished took"
    if flops is not None and spec.flops_per_second:
        return flops / spec.flops_per_second, "for training at the study's flops_per_second"
    return None, "unknown until a cell has finished; or give flops_per_second"
