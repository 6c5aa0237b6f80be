"""Evaluations of a run's checkpoints, from the base to the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthora.config import EvalConfig, build
from orthora.evaluate.contamination import contamination_of, run_of
from orthora.evaluate.result import EvalResult
from orthora.evaluate.run import run_one
from orthora.evaluate.subject import Subject, subject_of
from orthora.trained import checkpoints_of, config_of


def check_engine(config: EvalConfig) -> None:
    """Refuse what would end in the middle.

    Raises:
        ValueError: for vLLM, which serves no checkpoints.
    """
    if config.engine == "vllm":
        raise ValueError(
            "vLLM serves no checkpoint of a run; evaluate the finished run without checkpoints, or "
            "use engine 'transformers'"
        )


def series(
    config: EvalConfig | dict[str, Any] | str | Path,
    *,
    told: Callable[[str, EvalResult], None] = lambda name, result: None,
) -> dict[str, EvalResult]:
    """Evaluate the base, every checkpoint that is left, and the end of a run.

    All of them draw with the same random streams, so that differences are paired. An interrupted
    series goes on when it is called again. The run may be unfinished; then it has no end.

    Args:
        config: with ``adapter``, a run folder, and ``out``, under which each has a folder.
        told: called with each result, named as in what is returned.

    Returns:
        Results by folder name, in order: ``"base"``, ``"step-50"``, ..., ``"final"``.

    Raises:
        ValueError: as `orthora.evaluate`; or if ``adapter`` is no run folder.
    """
    config = build(EvalConfig, config)
    run = run_of(config.adapter)
    if run is None or config.out is None:
        raise ValueError(f"checkpoints needs adapter, a run folder, and out; {run} is none")
    check_engine(config)
    model = config.model or config_of(run).model
    base = subject_of(config.model_copy(update={"adapter": None, "model": model}))
    subjects: dict[str, Subject] = {"base": base}
    subjects |= {
        f"step-{step}": Subject(base.model, checkpoint=folder)
        for step, folder in checkpoints_of(run)
    }
    if (run / "adapter").is_dir() or (run / "model").is_dir():
        subjects["final"] = subject_of(config.model_copy(update={"adapter": str(run)}))
    contamination = contamination_of(config)
    results = {}
    for name, subject in subjects.items():
        changes = {"checkpoints": False, "out": str(Path(config.out) / name)}
        adapter = {"base": None, "final": str(run)}.get(name, str(subject.checkpoint))
        changes["any_base"] = config.any_base and name != "base"
        changes["model"] = model if name == "base" else config.model
        one = config.model_copy(update={**changes, "adapter": adapter})
        results[name] = run_one(one, subject, contamination)
        told(name, results[name])
    return results
