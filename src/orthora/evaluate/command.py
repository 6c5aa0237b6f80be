"""``orthora eval``, ``orthora rescore`` and ``orthora compare``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orthora.config import EvalConfig
from orthora.evaluate.comparing import Comparison, compare
from orthora.evaluate.rescoring import rescore
from orthora.evaluate.result import EvalResult, shown_ks
from orthora.evaluate.run import evaluate
from orthora.evaluate.series import series
from orthora.quiet import quiet_libraries
from orthora.store import check_new_file, write_json

_WORDS = {
    "correct": "correct",
    "wrong": "wrong answer",
    "no_answer": "no answer found",
    "truncated": "cut at the limit",
    "timeout": "timeout",
    "unscored": "no score (sandbox)",
}


@dataclass(frozen=True)
class RescoreOptions:
    """Verify the samples of an evaluation again, without a model, and rewrite its scores."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Evaluation folder, or a folder of them (a series)."""
    reward_rule: (
        Literal["robust", "robust-marked", "dapo", "gsm8k-strict", "gsm8k-flexible"] | None
    ) = None
    """Answer rule that counts; left out, that of the evaluation."""
    code_timeout: float | None = None
    """Seconds for a program and its tests; left out, as in the evaluation."""


@dataclass(frozen=True)
class CompareOptions:
    """Compare evaluations of the same problems with the first: difference, interval, exact test."""

    folders: Annotated[list[Path], tyro.conf.Positional]
    """Two evaluation folders or more."""
    json_out: Path | None = None
    """JSON file to write; must not exist."""


def run_eval(config: EvalConfig) -> None:
    """Evaluate, and print.

    Args:
        config: of the evaluation or series.

    Raises:
        ValueError: as `evaluate`.
    """
    if not config.checkpoints:
        print_result(evaluate(config), config.task if config.task != "file" else str(config.data))
        return
    found = series(
        config,
        told=lambda name, result: print(
            f"{name}: pass@1 {result.pass_at_1:.4f}", file=sys.stderr, flush=True
        ),
    )
    print_series(found)


def run_rescore(arguments: Sequence[str]) -> None:
    """Score again.

    Args:
        arguments: of the command line, without the command's name.

    Raises:
        ValueError: as `rescore`.
    """
    options = tyro.cli(RescoreOptions, args=arguments, prog="orthora rescore")
    quiet_libraries()
    inside = sorted(path.parent for path in options.folder.glob("*/samples.jsonl"))
    own = (options.folder / "samples.jsonl").is_file() or not inside
    for folder in [*([options.folder] if own else []), *inside]:
        result = rescore(folder, rule=options.reward_rule, timeout=options.code_timeout)
        print_result(result, str(folder))


def run_compare(arguments: Sequence[str]) -> None:
    """Compare, and print.

    Args:
        arguments: of the command line, without the command's name.

    Raises:
        ValueError: as `compare`; fewer than two folders; a JSON file that exists.
    """
    options = tyro.cli(CompareOptions, args=arguments, prog="orthora compare")
    if len(options.folders) < 2:
        raise ValueError("compare needs two evaluation folders or more")
    if options.json_out is not None:
        check_new_file(options.json_out)
    first, *others = options.folders
    found = {str(other): compare(other, first) for other in others}
    print_comparisons(str(first), found)
    if options.json_out is not None:
        from dataclasses import asdict

        rows = [{"first": name, "second": str(first), **asdict(c)} for name, c in found.items()]
        write_json(options.json_out, rows)


def print_result(result: EvalResult, title: str) -> None:
    """Print one evaluation.

    Args:
        result: of it.
        title: of the table.
    """
    table = Table("measure", "value", "95 % interval", title=Text(title), title_justify="left")
    table.add_row(f"mean@{result.samples} (pass@1)", *_with_interval(result, 1))
    for k in shown_ks(max(map(int, result.pass_at_k))):
        if k > 1:
            table.add_row(f"pass@{k}", *_with_interval(result, k))
    for k, value in result.majority_at_k.items():
        if int(k) > 2:  # with one or two votes it is pass@1
            table.add_row(f"maj@{k}", f"{value:.4f}")
    table.add_section()
    for name, share in result.outcomes.items():
        if share or name in ("truncated", "no_answer"):
            table.add_row(_WORDS[name], f"{share:.2%}")
    table.add_row("cut at the limit, right or wrong", f"{result.truncated:.2%}")
    table.add_row("mean length", f"{result.mean_length:.1f} tokens")
    if len(result.by_rule) > 1:
        table.add_section()
        for rule, value in result.by_rule.items():
            table.add_row(f"pass@1 by rule {rule}", f"{value:.4f}")
        table.add_row("rules differ on", f"{result.disagreement:.2%}")
    console = _console()
    console.print(table)
    size = f"{result.problems} problems x {result.samples} samples. "
    console.print(Text(size + seen_text(result.contamination)))


def _with_interval(result: EvalResult, k: int) -> tuple[str, str]:
    """pass@k and its interval."""
    low, high = result.pass_at_k_interval[str(k)]
    return f"{result.pass_at_k[str(k)]:.4f}", f"{low:.4f} to {high:.4f}"


def seen_text(contamination: dict[str, Any] | None) -> str:
    """What is known of the problems in the training data, in a sentence.

    Args:
        contamination: of an `EvalResult`.
    """
    if contamination is None:
        return "Not looked for in training data (--trained-on says which)."
    where = contamination["training"]
    if "error" in contamination:
        return f"Not looked for in training data {where}: {contamination['error']}"
    found = sum(contamination["found"].values())
    if not found:
        return f"None found in the training data ({where})."
    text = f"{found} stand in the training data ({where})"
    parts = [
        f"pass@1 {contamination[name]['pass_at_1']:.4f} on the {contamination[name]['problems']} "
        f"{words}"
        for name, words in (("seen", "found there"), ("unseen", "others"))
        if name in contamination
    ]
    return f"{text}: {', '.join(parts)}."


def print_series(results: dict[str, EvalResult]) -> None:
    """Print a series, one row each.

    Args:
        results: by name.
    """
    samples = next(iter(results.values())).samples
    table = Table("", f"mean@{samples}", "95 % interval", f"pass@{samples}", "cut", "no answer")
    for name, result in results.items():
        value, interval = _with_interval(result, 1)
        most = result.pass_at_k[max(result.pass_at_k, key=int)]
        cells = (f"{most:.4f}", f"{result.truncated:.2%}", f"{result.no_answer:.2%}")
        table.add_row(name, value, interval, *cells)
    _console().print(table)


def print_comparisons(first: str, found: dict[str, Comparison]) -> None:
    """Print comparisons with one evaluation.

    Args:
        first: what the others are compared with.
        found: by name of the other.
    """
    table = Table(
        "evaluation", "pass@1", "difference", "95 % interval", "p (exact)", "better / worse",
        title=Text(f"against {first}"), title_justify="left",
    )  # fmt: skip
    for name, one in found.items():
        low, high = one.interval
        table.add_row(
            Text(name), f"{one.first:.4f}", f"{one.difference:+.4f}", f"{low:+.4f} to {high:+.4f}",
            "unequal n" if one.p_value is None else f"{one.p_value:.3g}",
            f"{one.better} / {one.worse} of {one.problems}",
        )  # fmt: skip
    console = _console()
    console.print(table)
    for name, one in found.items():
        for key, (mine, theirs) in one.differing.items():
            console.print(Text(f"note: {name} has {key} {mine!r}, {first} has {theirs!r}"))


def _console() -> Console:
    """Stdout; wide where it is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))
