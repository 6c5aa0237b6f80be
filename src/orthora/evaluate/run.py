"""One evaluation from its config: sample, keep, verify, sum up."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from orthora import models
from orthora.adapters import folded, folds_exactly
from orthora.config import EvalConfig, build
from orthora.evaluate.contamination import contamination_of
from orthora.evaluate.engines import check_vllm, draw, draw_vllm, keys_of
from orthora.evaluate.folder import SampleFile, open_folder
from orthora.evaluate.problems import eval_problems
from orthora.evaluate.rescoring import bar, score_folder
from orthora.evaluate.result import EvalResult, result_of
from orthora.evaluate.scoring import Drawn, grouped, rules_for, scored
from orthora.evaluate.subject import Subject, subject_of
from orthora.rewards import check_programs
from orthora.sampling import Sampling
from orthora.types import Problem

_USUAL = 2048  # tokens of a response, at most


def evaluate(config: EvalConfig | dict[str, Any] | str | Path) -> EvalResult:
    """Sample responses of a model, with or without an adapter, and verify them.

    With ``out`` every sample is kept there as it comes. An evaluation that was interrupted goes on
    when it is called again, to the same samples: bit for bit with engine ``transformers`` on one
    kind of machine.

    Args:
        config: an `EvalConfig`, a dict of its fields, or a TOML file.

    Returns:
        The scores; also written to the folder ``config.out`` where that is set.

    Raises:
        ValueError: a bad config, a model, adapter or data that can't be read, an adapter of another
            base, or an ``out`` that holds something else.
        SandboxError: for programs, where they can't be run here.
    """
    config = build(EvalConfig, config)
    if config.checkpoints:
        raise ValueError("checkpoints gives several results; call orthora.evaluate.series(config)")
    return run_one(config, subject_of(config), contamination_of(config))


def run_one(
    config: EvalConfig, subject: Subject, contamination: dict[str, Any] | None
) -> EvalResult:
    """One evaluation of one model.

    Args:
        config: of it.
        subject: the model.
        contamination: what was found of it.

    Raises:
        ValueError: as `evaluate`.
    """
    problems = eval_problems(config)
    check_programs(problems)
    prepared = _Prepared(config, subject, problems)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(config.out) if config.out else Path(temporary) / "evaluation"
        weights = subject.fingerprint()
        prepared.read_again(open_folder(out, prepared.config, problems, prepared.texts, weights))
        samples = SampleFile(out, problems, prepared.samples)
        with samples.appending():
            if samples.missing:
                prepared.sample_into(samples)
        return score_folder(out, prepared.config, problems, samples, contamination)


class _Prepared:
    """An evaluation that is ready to sample, with everything checked that can be before."""

    def __init__(self, config: EvalConfig, subject: Subject, problems: list[Problem]) -> None:
        self._device = models.pick_device(config.device)
        self._subject = subject
        self._tokenizer = models.load_tokenizer(subject.model)
        plain = config.plain_prompts
        self.texts = [models.prompt_text(p, self._tokenizer, plain=plain) for p in problems]
        self._prompts = [models.prompt_ids(p, self._tokenizer, plain=plain) for p in problems]
        self.samples = config.samples_of()
        self._model: Any = None
        if config.engine == "vllm":
            check_vllm(subject.adapter, config.dtype)
            if subject.checkpoint is not None:
                raise ValueError(
                    "vLLM serves no checkpoint of a run; finish the run, or use engine "
                    "'transformers'"
                )
            settings = models.load_config(subject.model)
        else:
            self._model = subject.load(config.dtype, self._device)
            settings = self._model.config
        limit = config.max_response_tokens or _room(settings, self._prompts)
        self.config = config.model_copy(
            update={"max_response_tokens": limit, "samples": self.samples}
        )
        name = str(subject.model)
        if self._model is not None:
            models.fit(self._model, self._tokenizer, self._prompts, limit, name=name)
        else:
            models.check_positions(settings, self._prompts, limit, name=name)

    def read_again(self, texts: Sequence[str]) -> None:
        """Take the prompts as they were when the evaluation began: templates may hold the date."""
        if list(texts) != self.texts:
            plain = self.config.plain_prompts
            self._prompts = [models.text_ids(text, self._tokenizer, plain=plain) for text in texts]

    def sample_into(self, samples: SampleFile) -> None:
        """Draw what is missing."""
        done = {one[:2] for one in samples.drawn}

        def wanted(index: int, number: int) -> bool:
            return (index, number) not in done

        how = sampling_of(self.config)
        keys = keys_of(len(self._prompts), self.samples)
        total = len(done) + samples.missing
        with bar("sampling", total, len(done)) as advance:
            for one in self._rows(how, wanted):
                if wanted(*one[:2]):
                    samples.add(one, keys[one.problem][one.number])
                    advance()

    def _rows(self, how: Sampling, wanted: Callable[[int, int], bool]) -> Iterator[Drawn]:
        if (model := self._model) is not None:  # folding changes no more than rounding
            with folded(model) if folds_exactly(model) else nullcontext():
                yield from draw(model, self._tokenizer, self._prompts, self.samples, how, wanted)
            return
        subject = self._subject
        yield from draw_vllm(
            self.config, models.resolve(subject.model), subject.adapter, self._tokenizer,
            self._prompts, self.samples, how, wanted,
        )  # fmt: skip


def sampling_of(config: EvalConfig) -> Sampling:
    """The config's sampling."""
    assert config.max_response_tokens is not None, "known by now"
    return Sampling(
        max_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch=config.batch,
        seed=config.seed,
    )


def score(
    model: Any,
    tokenizer: Any,
    problems: list[Problem],
    how: Sampling,
    samples: int,
    *,
    rule: str = "robust",
    progress: bool = False,
    plain: bool = False,
) -> EvalResult:
    """Sample responses from a model in memory, and verify them.

    Every sample has a random stream of its own, keyed by the problem's place and the sample's
    number. The global random state is left as it was.

    Args:
        model: a transformers or PEFT causal language model.
        tokenizer: its tokenizer.
        problems: at least one.
        how: manner of the samples.
        samples: per problem.
        rule: of `orthora.math_verdict`.
        progress: show a bar on a terminal.
        plain: don't use the tokenizer's chat template.

    Returns:
        Scores with intervals, by this rule alone.

    Raises:
        ValueError: if there are no problems, or they are not within the model's positions and
            vocabulary.
        SandboxError: for programs, where they can't be run here.
    """
    if not problems:
        raise ValueError("no problems to score; check the data file")
    prompts = [models.prompt_ids(problem, tokenizer, plain=plain) for problem in problems]
    name = getattr(model.config, "name_or_path", None) or type(model).__name__
    models.fit(model, tokenizer, prompts, how.max_tokens, name=name)
    with bar("evaluating", len(problems) * samples, shown=progress) as advance:
        drawn = []
        for one in draw(model, tokenizer, prompts, samples, how):
            drawn.append(one)
            advance()
    judged = scored(drawn, problems, rule, both=False)
    groups = grouped(drawn, judged, len(problems))
    votes = rules_for(rule, problems) != ("tests",)
    return result_of([[one for _, one in group] for group in groups], samples, votes=votes)


def _room(settings: Any, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens for a response: 2048, or what the longest prompt leaves of the model's positions."""
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    if not positions:
        return _USUAL
    return max(1, min(_USUAL, positions - max(map(len, prompts), default=0)))
