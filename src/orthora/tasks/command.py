"""``orthora contamination``: what of an evaluation set is in a training set."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from orthora.quiet import quiet_libraries
from orthora.store import check_new_file, write_json
from orthora.tasks.contamination import Contamination, Kind, Match, find_contamination
from orthora.tasks.files import file_rows, load_problems
from orthora.tasks.named import TASKS
from orthora.tasks.registry import load_task, task
from orthora.types import Problem

_PROMPTS = ("prompt", "problem", "question", "text")
_GOLDS = ("answer", "reward_model", "solution", "code")
_SUFFIXES = (".jsonl", ".json", ".parquet")
_RULES: dict[Kind, str] = {
    "exact": "exact: the same letters and digits",
    "words": "words: half of its 10-grams or more",
    "opening": "opening: the same 80 letters and digits",
}


@dataclass(frozen=True)
class Options:
    """Say which problems of EVAL are in TRAIN, word for word or nearly so, and with which gold.

    A problem counts under the strongest rule that holds: the same letters and digits; at least half
    of its word 10-grams in one training problem; the same first 80 letters and digits. Reworded and
    translated problems are not found.

    With the hub, with a file of a task, and with any two files:

    orthora contamination aime24 dapo-math

    orthora contamination aime22 dapo-math --train-data dapo.parquet --list

    orthora contamination held_out.jsonl train.jsonl --json-out overlap.json
    """

    eval: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EVAL")]
    """Task (aime24, math500, gsm8k, ...) or file that a model is to be evaluated on."""
    train: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    """Task (dapo-math, gsm8k, ...) or file that it is trained on."""
    eval_data: str | None = None
    """File or folder with the task EVAL, instead of the hub."""
    train_data: str | None = None
    """File or folder with the task TRAIN, instead of the hub."""
    json_out: Path | None = None
    """JSON file to write, with every evaluation problem's closest match; must not exist."""
    listed: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the problems that were found."""


def contamination(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: of the command line, without the command's name.

    Raises:
        ValueError: an unknown task, data that can't be read, or a JSON file that exists.
    """
    options = tyro.cli(Options, args=arguments, prog="orthora contamination")
    if options.json_out is not None:
        check_new_file(options.json_out)
    quiet_libraries()
    evaluation = _problems(options.eval, options.eval_data, "eval")
    training = _problems(options.train, options.train_data, "train")
    found = find_contamination(evaluation, training)
    _print(options, found)
    if options.json_out is not None:
        write_json(options.json_out, as_json(options.eval, options.train, found))


def as_json(evaluation: str, training: str, found: Contamination) -> dict[str, Any]:
    """The result for a file.

    Args:
        evaluation: task or file.
        training: task or file.
        found: what was found.

    Returns:
        Names, sizes, totals by rule (and how many of them have the same gold), and every match.
    """
    totals = {
        kind: {"problems": found.count(kind), "same_gold": _same_gold(found, kind)}
        for kind in _RULES
    }
    return {
        "eval": evaluation,
        "train": training,
        "eval_problems": len(found.matches),
        "train_problems": found.training,
        "found": len(found.found),
        "totals": totals,
        "matches": [asdict(match) for match in found.matches],
    }


def _problems(name: str, data: str | None, side: str) -> list[Problem]:
    """The problems of one side of the comparison, without prompts around them."""
    is_file = Path(name).suffix in _SUFFIXES or Path(name).is_file()
    if not is_file or name in TASKS:
        known = task(name)
        split = "train" if side == "train" and "train" in known.splits else None
        return load_task(known.name, data, split, template="{prompt}")
    if data is not None:
        raise ValueError(f"{name} is a file already; leave --{side}-data {data} out")
    columns = file_rows(name, "train").column_names
    prompt = next((column for column in _PROMPTS if column in columns), None)
    gold = next((column for column in _GOLDS if column in columns), None)
    if prompt is None or gold is None:
        wanted = _PROMPTS if prompt is None else _GOLDS
        raise ValueError(
            f"{name} has none of the columns {', '.join(wanted)}; there are: "
            f"{', '.join(columns)}. Rename the one that is meant"
        )
    gold = "reward_model.ground_truth" if gold == "reward_model" else gold
    return load_problems(name, prompt_column=prompt, answer_column=gold)


def _same_gold(found: Contamination, *kinds: Kind) -> int:
    """Matches by these rules whose golds agree."""
    return sum(match.kind in kinds and bool(match.same_gold) for match in found.matches)


def _print(options: Options, found: Contamination) -> None:
    """Totals as a table, and the matches where asked for."""
    from rich.console import Console
    from rich.table import Table

    problems = len(found.matches)
    title = f"{options.eval} ({problems} problems) in {options.train} ({found.training})"
    shown = Table("rule", "problems", "share", "same gold", title=title, title_justify="left")
    for kind, rule in _RULES.items():
        shown.add_row(rule, *_cells(found, kind))
    shown.add_section()
    shown.add_row("any", *_cells(found, *_RULES))
    Console().print(shown)
    if options.listed:
        listed = Table("problem", "rule", "10-grams", "training problem", "same gold")
        for match in found.found:
            listed.add_row(*_row(match))
        Console().print(listed)


def _cells(found: Contamination, *kinds: Kind) -> tuple[str, str, str]:
    """Number, share and number with the same gold of the problems found by rules."""
    count = found.count(*kinds)
    return str(count), f"{count / len(found.matches):.1%}", str(_same_gold(found, *kinds))


def _row(match: Match) -> tuple[str, ...]:
    """One match as cells."""
    same = "yes" if match.same_gold else "no"
    return match.problem, match.kind, f"{match.share:.0%}", str(match.train), same
