"""The problems of an evaluation."""

from orthora.config import EvalConfig
from orthora.rewards.spelling import tidy
from orthora.tasks import load_problems, load_task
from orthora.tasks.hygiene import cleaned
from orthora.types import Problem


def eval_problems(config: EvalConfig, *, bare: bool = False) -> list[Problem]:
    """The problems that an evaluation config asks for, in order.

    Args:
        config: of the evaluation.
        bare: without a prompt around them.

    Raises:
        ValueError: data that can't be read, or more problems asked for than there are.
    """
    count = config.problems or None
    template = config.prompt_template
    if template is not None and "{prompt}" not in template:
        raise ValueError(
            f"prompt_template {template!r} has no {{prompt}}; write it where it belongs"
        )
    if config.task == "file":
        assert config.data is not None, "validated"
        problems = load_problems(
            config.data,
            split=config.data_split or "test",
            prompt_column=config.prompt_column,
            answer_column=config.answer_column,
            template="{prompt}" if bare else config.prompt_template or "{prompt}",
        )
        problems = cleaned(problems, config.drop)[:count]
    else:
        template = "{prompt}" if bare and config.task != "arithmetic" else config.prompt_template
        problems = load_task(
            config.task,
            config.data,
            config.data_split,
            drop=config.drop,
            template=template,
            count=count,
        )
    if count is not None and len(problems) < count:
        raise ValueError(f"problems is {count}, and there are {len(problems)}; lower it, or 0")
    for problem in problems:
        if not problem.tests and not tidy(problem.answer):
            raise ValueError(
                f"the gold of problem {problem.id!r} is {problem.answer!r}, which says nothing; "
                "correct the row or drop it"
            )
    return problems
