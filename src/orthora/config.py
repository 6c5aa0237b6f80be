"""Strict, typed, frozen configuration: TOML files, dicts and command lines give the same object."""

import difflib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from orthora.methods import registry

Beta = Annotated[float, Field(ge=0, lt=1)]
Config = TypeVar("Config", bound="_Strict")


class _Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TrainConfig(_Strict):
    """One RLVR run. Defaults are the source paper's Table 2 (arXiv 2606.31813), DAPO."""

    model: str
    """Model folder or hub name; ``tiny`` is the embedded model."""
    out: str
    """Run folder to create."""
    method: str = "rlpo"
    """Initialisation; see ``orthora methods``."""
    start: str | None = None
    """Adapter folder of ``orthora init`` with the same settings, to start from what it computed."""

    task: Literal["arithmetic", "file"] = "file"
    """``arithmetic`` is procedural; ``file`` reads ``data``."""
    data: str | None = None
    """JSONL or parquet file, or hub data set, of task ``file``."""
    data_split: str = "train"
    """Split of a hub data set."""
    eval_data: str | None = None
    """Held-out file of task ``file``; same columns."""
    prompt_column: str = "prompt"
    """Column of the prompt; dots reach into structs, e.g. ``extra.prompt``."""
    answer_column: str = "answer"
    """Column of the gold answer, e.g. ``reward_model.ground_truth``."""
    prompt_template: str = "{prompt}"
    """Text around the prompt; must contain ``{prompt}``."""
    train_problems: int = Field(4096, ge=1)
    """Problems that task ``arithmetic`` draws."""
    reward_rule: Literal["robust", "dapo"] = "robust"
    """Verifier of final answers; correct is +1, wrong is -1."""
    reward: str | None = None
    """Own reward instead, ``file.py:function`` or ``module:function`` of (response, answer)."""

    rank: int = Field(16, ge=1)
    """Adapter rank r."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's scale is alpha / rank."""
    target_modules: str | list[str] = "all-linear"
    """As in PEFT: ``all-linear``, names, or one regular expression."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input in the update; rollouts and measurements run without."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of data order, sampling and random initialisations."""

    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Floor of the cosine schedule, as a share of the peak."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, in training steps."""
    weight_decay: float = Field(0.1, ge=0)
    """Of AdamW, pulling A and B to 0 (not to the start)."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Of AdamW."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""

    steps: int = Field(1024, ge=1)
    """Training steps; each is one rollout and its mini-batch updates."""
    prompts_per_step: int = Field(128, ge=1)
    """Prompts in a rollout."""
    group_size: int = Field(8, ge=2)
    """Responses per prompt, G."""
    mini_batch_prompts: int = Field(32, ge=1)
    """Prompts' worth of responses in one optimizer update."""
    micro_batch: int = Field(8, ge=1)
    """Responses in one forward and backward pass: memory, not the gradient (but entropy_bonus)."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longer prompts are dropped, and counted."""
    max_response_tokens: int = Field(16384, ge=1)
    """Longer responses are cut, and counted as truncated."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollout."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the rollout."""
    top_k: int = Field(0, ge=0)
    """Candidates of the rollout; 0 is all."""

    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """``dapo`` is the token mean, over a rollout's mean tokens per mini-batch (TRL's)."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """What the advantage is divided by: standard deviation of its group, the batch, or nothing."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the ratio."""
    clip_high: float = Field(0.28, gt=0)
    """Upper clip of the ratio."""
    dual_clip: float | None = Field(10.0, gt=1)
    """Bound of the ratio where the advantage is negative."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL term to the base model."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy term."""
    overlong_buffer: int = Field(4096, ge=0)
    """Tokens before the limit over which the length penalty grows; 0 turns it off."""
    overlong_penalty: float = Field(1.0, ge=0)
    """Penalty at the limit."""
    mask_truncated: bool = False
    """Leave truncated responses out of the loss."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base weights; adapters are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 leaves PyTorch's choice."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    save_every: int = Field(50, ge=0)
    """Training steps between checkpoints; 0 saves only the final adapter."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older ones are deleted."""
    eval_problems: int = Field(0, ge=0)
    """Held-out problems scored at the end; 0 is none."""
    eval_samples: int = Field(4, ge=1)
    """Samples per held-out problem."""
    eval_base: bool = False
    """Score the base model on them as well."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        registry.get(self.method)
        if self.prompts_per_step % self.mini_batch_prompts:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} is not a multiple of "
                f"mini_batch_prompts {self.mini_batch_prompts}"
            )
        if (self.mini_batch_prompts * self.group_size) % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide a mini-batch of "
                f"{self.mini_batch_prompts * self.group_size} responses"
            )
        if self.overlong_buffer and self.overlong_buffer >= self.max_response_tokens:
            raise ValueError(
                f"overlong_buffer {self.overlong_buffer} must be below max_response_tokens "
                f"{self.max_response_tokens}, or 0"
            )
        if "{prompt}" not in self.prompt_template:
            raise ValueError("prompt_template must contain {prompt}")
        if self.task == "file" and self.data is None:
            raise ValueError("task 'file' needs data, a JSONL or parquet file or a hub data set")
        if self.task == "file" and bool(self.eval_data) != bool(self.eval_problems):
            raise ValueError("eval_data and eval_problems (how many of its rows) go together")
        return self


class EvalConfig(_Strict):
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
    problems: int = Field(0, ge=0)
    """Problems to score; 0 is all of a file, or 256 of ``arithmetic``."""
    samples: int = Field(4, ge=1)
    """Samples per problem."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy, with one sample."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus."""
    max_response_tokens: int = Field(2048, ge=1)
    """Longer responses are cut, and counted."""
    batch: int = Field(256, ge=1)
    """Responses generated at once."""
    reward_rule: Literal["robust", "dapo"] = "robust"
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


def preset_names() -> list[str]:
    """Names of the packaged presets."""
    folder = resources.files("orthora") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if ".toml" in p.name)


def read_toml(name: str | Path) -> dict[str, Any]:
    """The table in a TOML file, or in the packaged preset of that name.

    Raises:
        ValueError: if there is neither, or the file is not TOML.
    """
    path = Path(name)
    if not path.is_file() and str(name) in preset_names():
        text = (resources.files("orthora") / "presets" / f"{name}.toml").read_text()
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"no config file {str(name)!r}; give a TOML file or a preset: "
            f"{', '.join(preset_names())}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not valid TOML: {error}") from error


def build(kind: type[Config], source: Config | dict[str, Any] | str | Path) -> Config:
    """A validated config from itself, a dict, a TOML file, or a preset's name.

    Raises:
        ValueError: one line per mistake; an unknown key comes with the nearest known one.
    """
    if isinstance(source, kind):
        return source
    if isinstance(source, str | Path):
        source = read_toml(source)
    if not isinstance(source, dict):
        raise ValueError(f"{kind.__name__} can't be made of a {type(source).__name__}")
    table = source
    unknown = [key for key in table if key not in kind.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], kind.model_fields, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown config key {unknown[0]!r}.{hint}")
    try:
        return kind(**table)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_plain(item) for item in error.errors())) from error


def _plain(item: Any) -> str:
    """One validation mistake as `key: what is wrong, got value`."""
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    value = "" if item["type"] == "missing" else f", got {item['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{value}"


def to_toml(config: BaseModel) -> str:
    """The config as TOML that `build` reads back to an equal object; None is left out."""
    lines = []
    for key, value in config.model_dump(mode="json").items():
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
