"""The named tasks: a record each of where the data is, how a row is read, and what judges it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from orthora.tasks.golds import gsm8k_gold, integer_gold, program_gold, text_gold
from orthora.tasks.rows import MBPP_SPLITS, Row, aime_rows, mbpp_rows, one_block
from orthora.tasks.statements import MATH_TEMPLATE

CODE_TEMPLATE = (
    "{prompt}\n\nYour code should pass these tests:\n\n{tests}\n\n"
    "Write the whole program in one ```python block."
)
"""Prompt of the programming tasks."""


@dataclass(frozen=True)
class Task:
    """What orthora knows of a named task.

    Attributes:
        name: of the task.
        hub: name of the data set on the hub; "" of a procedural task.
        splits: of the data; the first one is for evaluation.
        prompts: columns that may hold the problem, text or chat; the first one present counts.
        golds: columns that may hold the gold answer, likewise; dots reach into structs.
        read: takes the gold out of its cell.
        source: authors and paper or page.
        licence: as the source labels it.
        config: of the hub data set.
        id: column of the identifier; the row number where it is "", or where a row has none.
        template: prompt; ``{prompt}`` and, of code, ``{tests}`` are filled in.
        verifier: ``"math"``: `orthora.math_verdict`; ``"code"``: runs the problem's tests.
        samples: per problem in an evaluation.
        select: takes all rows and the split to the rows of the task.
    """

    name: str
    hub: str
    splits: tuple[str, ...]
    prompts: tuple[str, ...]
    golds: tuple[str, ...]
    read: Callable[[Any], str]
    source: str
    licence: str
    config: str | None = None
    id: str = ""
    template: str = MATH_TEMPLATE
    verifier: Literal["math", "code"] = "math"
    samples: int = 4
    select: Callable[[Any, str], Iterable[Row]] = lambda rows, _: rows


def _dapo_rows(rows: Any, split: str) -> Any:
    """DAPO's rows once."""
    return one_block(rows)


def _year_of(year: int) -> Callable[[Any, str], list[Row]]:
    """Selects one AIME."""
    return lambda rows, _: aime_rows(rows, year)


_aime = partial(
    Task,
    hub="AI-MO/aimo-validation-aime",
    splits=("train",),
    prompts=("problem", "question", "prompt"),
    golds=("answer", "reward_model.ground_truth"),
    read=integer_gold,
    id="exam_id",
    samples=32,
    source="AI-MO validation set, from the AoPS wiki",
    licence="labelled Apache-2.0; text (c) MAA",
)
_mbpp = partial(
    Task,
    hub="google-research-datasets/mbpp",
    splits=("test", *(split for split in MBPP_SPLITS if split != "test")),
    golds=("code",),
    read=program_gold,
    id="task_id",
    template=CODE_TEMPLATE,
    verifier="code",
    samples=10,
    select=mbpp_rows,
    source="Austin et al. 2021 (arXiv 2108.07732), Google Research",
    licence="CC BY 4.0",
)

TASKS = {
    known.name: known
    for known in (
        Task(
            name="arithmetic",
            hub="",
            splits=("test", "validation", "train"),
            prompts=(),
            golds=(),
            read=integer_gold,
            template="{prompt}",
            source="orthora.tasks.arithmetic",
            licence="as orthora",
        ),
        Task(
            name="dapo-math",
            hub="BytedTsinghua-SIA/DAPO-Math-17k",
            splits=("train",),
            prompts=("prompt",),
            golds=("reward_model.ground_truth",),
            read=integer_gold,
            samples=1,
            select=_dapo_rows,
            source="DAPO (arXiv 2503.14476)",
            licence="Apache-2.0",
        ),
        Task(
            name="gsm8k",
            hub="openai/gsm8k",
            config="main",
            splits=("test", "train"),
            prompts=("question",),
            golds=("answer",),
            read=gsm8k_gold,
            source="Cobbe et al. 2021 (arXiv 2110.14168), OpenAI",
            licence="MIT",
        ),
        Task(
            name="math500",
            hub="HuggingFaceH4/MATH-500",
            splits=("test",),
            prompts=("problem",),
            golds=("answer",),
            read=text_gold,
            id="unique_id",
            source="Hendrycks et al. 2021 (arXiv 2103.03874); split of PRM800K (arXiv 2305.20050)",
            licence="MIT",
        ),
        _aime(name="aime22", select=_year_of(2022)),
        _aime(name="aime23", select=_year_of(2023)),
        _aime(name="aime24", select=_year_of(2024)),
        _aime(name="aime25", hub="math-ai/aime25", splits=("test",), select=_year_of(2025)),
        _mbpp(name="mbpp", config="full", prompts=("text",)),
        _mbpp(name="mbpp-sanitized", config="sanitized", prompts=("prompt",)),
    )
}
"""All tasks, by name."""
