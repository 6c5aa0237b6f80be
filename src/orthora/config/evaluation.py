"""The settings of an evaluation."""

from typing import Literal

from pydantic import Field, model_validator

from orthora.strict import Strict


class EvalConfig(Strict):
    """One evaluation: sample n responses per problem, verify, report pass@k with intervals."""

    model: str
    """Model folder or hub name; ``tiny`` is the embedded model."""
    adapter: str | None = None
    """Plain PEFT adapter folder, or a run folder."""
    task: Literal["arithmetic", "file"] = "file"
    """As in training; ``arithmetic`` uses its test split."""
    data: str | None = None
    """JSONL or parquet file, or hub data set, of task ``file``."""
    data_split: str = "test"
    """Split of a hub data set."""
    prompt_column: str = "prompt"
    """As in training."""
    answer_column: str = "answer"
    """As in training."""
    prompt_template: str = "{prompt}"
    """As in training."""
    plain_prompts: bool = False
    """As in training."""
    problems: int = Field(0, ge=0)
    """Problems to score; 0 is all of a file, or 256 of ``arithmetic``."""
    samples: int = Field(4, ge=1)
    """Samples per problem."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy, with one sample."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus."""
    max_response_tokens: int | None = Field(None, ge=1)
    """Longer responses are cut, and counted; left out, 2048 or what the model's positions leave."""
    batch: int = Field(256, ge=1)
    """Responses generated at once."""
    reward_rule: Literal["robust", "dapo", "gsm8k-strict", "gsm8k-flexible"] = "robust"
    """Verifier."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the samples."""
    out: str | None = None
    """JSON file to write; must not exist."""

    @model_validator(mode="after")
    def _consistent(self) -> "EvalConfig":
        if self.temperature == 0 and self.samples != 1:
            raise ValueError(f"greedy decoding gives one sample, not {self.samples}; samples = 1")
        if self.task == "file" and self.data is None:
            raise ValueError("task 'file' needs data, a JSONL or parquet file or a hub data set")
        return self
