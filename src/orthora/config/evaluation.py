"""The settings of an evaluation."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from orthora.strict import Strict
from orthora.tasks.registry import task

_SAMPLES = 4
"""Per problem of task ``file``."""


class EvalConfig(Strict):
    """One evaluation: sample n responses per problem, verify, report pass@k with intervals."""

    command: ClassVar[str] = "orthora eval"
    model: str | None = None
    """Base model, folder or hub name; ``tiny`` is the embedded model. Left out, that of the run."""
    adapter: str | None = None
    """Plain PEFT adapter folder, a run folder, or a checkpoint in one; left out, the base alone."""
    checkpoints: bool = False
    """Evaluate the base, every checkpoint and the end of the run ``adapter``, each in a folder of
    its own in ``out``."""
    any_base: bool = False
    """Accept an adapter whose base has another name than ``model``."""
    task: str = "file"
    """Named task, such as ``gsm8k``, ``math500``, ``aime24``, ``mbpp`` or ``arithmetic``; or
    ``file``, which reads ``data``."""
    data: str | None = None
    """JSONL or parquet file, folder or hub data set; a named task has its own on the hub."""
    data_split: str | None = None
    """Split of a hub data set; left out, ``test``, or the one that a named task is evaluated on."""
    prompt_column: str = "prompt"
    """Of task ``file``: column of the prompt; dots reach into structs."""
    answer_column: str = "answer"
    """Of task ``file``: column of the gold answer."""
    prompt_template: str | None = None
    """Text around the prompt, with ``{prompt}``; left out, the task's own, or none around a
    file's."""
    drop: tuple[Literal["duplicates", "contradictions"], ...] = ()
    """Problems to leave out: repeated ones but the first, and all of one problem with two golds."""
    plain_prompts: bool = False
    """Leave the tokenizer's chat template aside."""
    problems: int = Field(0, ge=0)
    """Problems to score, the first of the data; 0 is all, or 256 of ``arithmetic``."""
    samples: int | None = Field(None, ge=1)
    """Samples per problem, n; left out, 1 if greedy, else what is usual with the task (AIME 32,
    MBPP 10, others 4)."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy, with one sample."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus."""
    top_k: int = Field(0, ge=0)
    """Candidates; 0 is all."""
    max_response_tokens: int | None = Field(None, ge=1)
    """Longer responses are cut, and counted; left out, 2048 or what the model's positions leave."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What draws the samples."""
    batch: int = Field(256, ge=1)
    """Responses generated at once, and lost by a kill; with transformers it decides the rounding,
    so keep it to get the same samples."""
    vllm_memory: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory for vLLM."""
    vllm_tensor_parallel: int = Field(1, ge=1)
    """GPUs per vLLM engine."""
    reward_rule: Literal["robust", "robust-marked", "dapo", "gsm8k-strict", "gsm8k-flexible"] = (
        "robust"
    )
    """Verifier of answers that counts; ``dapo`` (or ``robust``) is reported beside it. Programs are
    run on their tests."""
    code_timeout: float = Field(5.0, gt=0)
    """Seconds for a program and its tests."""
    trained_on: str | None = None
    """Task or file that the model was trained on, in which the problems are looked for; left out,
    what the run folder says."""
    trained_on_data: str | None = None
    """File or folder with the task ``trained_on``, instead of the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the samples; each has a random stream of its own."""
    out: str | None = Field(None, min_length=1)
    """Folder to create, with every sample; an evaluation in it that was interrupted goes on."""

    def samples_of(self) -> int:
        """Samples per problem."""
        if self.samples is not None:
            return self.samples
        if self.temperature == 0:
            return 1
        return _SAMPLES if self.task == "file" else task(self.task).samples

    @field_validator("task")
    @classmethod
    def _named(cls, name: str) -> str:
        return name if name == "file" else task(name).name

    @model_validator(mode="after")
    def _consistent(self) -> "EvalConfig":
        if self.temperature == 0 and self.samples_of() != 1:
            raise ValueError(f"greedy decoding gives one sample, not {self.samples}; samples = 1")
        if self.task == "file" and self.data is None:
            raise ValueError("task 'file' needs data, a JSONL or parquet file or a hub data set")
        if self.model is None and self.adapter is None:
            raise ValueError("there is nothing to evaluate; give model, or adapter, a run folder")
        if self.checkpoints and (self.adapter is None or self.out is None):
            raise ValueError("checkpoints needs adapter, a run folder, and out, a folder")
        self._check_unused()
        return self

    def _check_unused(self) -> None:
        """What would be passed over in silence."""
        named = self.task != "file"
        code = named and task(self.task).verifier == "code"
        for wrong, key, remedy in (
            (named and self.prompt_column != "prompt", "prompt_column", "task 'file'"),
            (named and self.answer_column != "answer", "answer_column", "task 'file'"),
            (code and self.reward_rule != "robust", "reward_rule", "a task with answers"),
            (self.trained_on_data and not self.trained_on, "trained_on_data", "trained_on"),
            (self.any_base and not self.adapter, "any_base", "adapter"),
        ):
            if wrong:
                raise ValueError(f"{key} has no effect here; it needs {remedy}")
