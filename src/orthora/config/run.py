"""The settings of a training run."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from orthora.config.consistency import LORA_PLUS_RATIO, check_consistent
from orthora.config.match import parse_match
from orthora.config.tasks import held_out_task, training_task
from orthora.methods import compose
from orthora.strict import Strict
from orthora.watch import parse as parse_rule

Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class TrainConfig(Strict):
    """One RLVR run. Defaults are the source paper's Table 2 (arXiv 2606.31813), DAPO."""

    command: ClassVar[str] = "orthora train"
    flag_types: ClassVar[dict[str, Any]] = {"learning_rate": float | str}
    """Fields for which a flag takes a short form that is not of the field's type."""
    model: str
    """Model folder or hub name; ``tiny`` is the embedded model."""
    out: str
    """Run folder to create."""
    method: str = "rlpo"
    """Initialisation, or a composition such as ``rlpo+dora``; see ``orthora methods``."""
    start: str | None = None
    """Adapter folder of ``orthora init`` with the same settings, to start from what it computed."""

    task: str = "file"
    """``file`` reads ``data``; ``arithmetic`` is procedural; ``dapo-math``, ``gsm8k``, ``math500``,
    ``aime24``, ``mbpp`` and others are data sets that orthora knows."""
    data: str | None = None
    """JSONL or parquet file, or hub data set, of task ``file``; of another task, a file, folder or
    hub data set in its form, instead of its own on the hub."""
    data_split: str = "train"
    """Split of a hub data set, and of any task that has data."""
    drop: tuple[Literal["duplicates", "contradictions"], ...] = ()
    """Training rows to leave out: problems that come again, and those with two golds."""
    eval_task: str | None = None
    """Task whose evaluation split is scored at the end; left out, it is that of ``task``."""
    eval_data: str | None = None
    """Held-out file: of ``eval_task`` or ``task``, instead of the hub; of task ``file`` with the
    same columns."""
    prompt_column: str = "prompt"
    """Column of the prompt, of task ``file``; dots reach into structs, e.g. ``extra.prompt``."""
    answer_column: str = "answer"
    """Column of the gold answer, of task ``file``, e.g. ``reward_model.ground_truth``."""
    prompt_template: str = "{prompt}"
    """Text around the prompt; must contain ``{prompt}``. Left as it is, a task's own; ``{tests}``
    are a program's tests."""
    plain_prompts: bool = False
    """Leave the tokenizer's chat template aside."""
    train_problems: int = Field(4096, ge=1)
    """Problems that task ``arithmetic`` draws."""
    reward_rule: Literal["robust-marked", "robust", "dapo", "gsm8k-strict", "gsm8k-flexible"] = (
        "robust-marked"
    )
    """Verifier of final answers; correct is +1, wrong is -1. Programs are judged by their tests."""
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
    lora_plus_ratio: float = Field(LORA_PLUS_RATIO, ge=1)
    """With ``lora-plus``: learning rate of B over that of A (2 in PeRL's RLVR runs; the LoRA+ paper
    has 16 for fine-tuning)."""

    learning_rate: float = Field(1e-5, ge=0)
    """Peak learning rate of AdamW; ``"match-kl:lora@1e-5"`` is short for learning_rate_match."""
    learning_rate_match: str | None = None
    """``kl:lora@1e-5``: the learning rate at which a first step moves the policy as far as another
    method's at its own; ``norm:...``: one update, the weights. A probe before the run finds it."""
    schedule: Literal["constant", "cosine", "adaptive-kl"] = "constant"
    """Learning-rate schedule after the warm-up; ``adaptive-kl`` begins at learning_rate and then
    holds the KL of each rollout's updates at kl_target."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Floor of the cosine schedule, as a share of the peak."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up from 0, in training steps; the first update stands still, as everywhere."""
    kl_target: float = Field(2e-3, gt=0)
    """KL to hold between rollout policy and updated policy, in nats per token."""
    kl_target_floor: float = Field(1.0, gt=0, le=1)
    """Share of kl_target that a half cosine leaves at the last step; 1 holds it."""
    kl_rule: Literal["sqrt", "step"] = "sqrt"
    """``sqrt``: learning rate by the running ratio of KL to its square; ``step``: by a fixed factor
    where the KL is off by more than two."""
    kl_smoothing: float = Field(0.5, ge=0, lt=1)
    """Share of the past in the running ratio of KL to squared learning rate."""
    kl_max_change: float = Field(1.3, gt=1)
    """Factor that a step may change the learning rate by."""
    kl_undo: float = Field(10.0, ge=0)
    """Multiple of the target beyond which a step's updates are taken back, and the learning rate is
    lowered at once; 0 never does. Needs memory for a second adapter and optimizer state."""
    kl_lr_bounds: tuple[Positive, Positive] = (1e-9, 0.1)
    """Smallest and largest learning rate of ``adaptive-kl``."""
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
    update_epochs: int = Field(1, ge=1)
    """Times that a rollout's mini-batches are gone through (mu of GRPO)."""
    micro_batch: int = Field(8, ge=1)
    """Responses in one forward and backward pass, at most: memory, not the gradient."""
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
    dynamic_sampling: bool = False
    """Train on groups alone whose answers are neither all right nor all wrong (with an own reward:
    whose scores differ), and draw prompts until the rollout is full (DAPO)."""
    max_draws: int = Field(10, ge=1)
    """Times that prompts are drawn for one rollout; then it is trained on as it is, and says so."""
    keep_surplus: bool = False
    """Hand groups beyond a full rollout to the next one (a step off policy), not drop them."""
    patience: int = Field(20, ge=0)
    """Without dynamic_sampling: steps without any group with a signal, after which the run stops; 0
    never does."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What draws the rollouts."""
    rollout_batch: int = Field(256, ge=1)
    """Responses generated at once by engine ``transformers``: memory, not the result."""
    fold_adapter: Literal["auto", "never"] = "auto"
    """Merge the adapter for the time of a rollout where that is exact (float32 weights)."""
    share_prompts: Literal["auto", "never"] = "auto"
    """Score a group's responses behind one copy of their prompt, where that costs less."""
    old_logps: Literal["auto", "sampled", "recomputed"] = "auto"
    """Log-probabilities of the ratio's base: those of sampling, or scored again by the trainer.
    ``auto`` takes the sampled ones where sampler and trainer agree (transformers in float32)."""
    importance_cap: float = Field(2.0, ge=0)
    """Where they were drawn by another engine: cap of the tokens' importance weights; 0 is off."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """vLLM in the training processes, or as a server of its own."""
    vllm_url: str | None = None
    """Address of the vLLM server."""
    vllm_memory: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory for colocated vLLM."""
    vllm_tensor_parallel: int = Field(1, ge=1)
    """GPUs per colocated vLLM engine."""

    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """``dapo``: mean over a mini-batch's tokens; ``grpo``: over its sequences' token means;
    ``dr_grpo``: over a constant length."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or of the whole sequence (GSPO)."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """What the advantage is divided by: standard deviation of its group, the batch, or nothing."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the ratio."""
    clip_high: float = Field(0.28, gt=0)
    """Upper clip of the ratio."""
    dual_clip: float = Field(10.0, ge=0)
    """Bound of the ratio where the advantage is negative; 0 is off."""
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
    processes: int = Field(0, ge=0)
    """Processes that the run must have, started by torchrun; 0 takes any number."""
    threads: int = Field(0, ge=0)
    """CPU threads of each process; 0 leaves PyTorch's choice."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    kl_update_share: float = Field(0.25, ge=0, le=1)
    """Share of a rollout's responses on which the KL of its updates is measured, the surprising
    ones preferred and weighted down for it; 0 is none."""
    kl_base_share: float = Field(0.0625, ge=0, le=1)
    """Share of a rollout's responses on which the KL to the base is measured; 0 is none. With
    beta > 0 it is all of them."""
    geometry: bool = True
    """Measure at every step how far and where the weights moved, for adapters whose update is a
    product of factors."""
    head_rank: int | None = Field(None, ge=0)
    """Dimension of the head subspace (top right singular vectors of every weight) whose share of
    the update is measured; left out, it is the rank; 0 measures none."""
    watch: tuple[str, ...] = ("default",)
    """Rules that tell of a collapse, such as ``kl_update_k3 > 0.02 for 2`` or ``grad_norm > 10x``
    (times its median so far); ``default`` is a set of them."""
    watch_action: Literal["warn", "stop", "rollback"] = "warn"
    """What follows when a rule fires; ``rollback`` goes back to the last checkpoint before it, with
    a lower learning rate."""
    watch_lr_factor: float = Field(0.5, gt=0, lt=1)
    """What a rollback leaves of the learning rate."""
    watch_rollbacks: int = Field(3, ge=1)
    """Rollbacks of a run; the next alarm ends it."""
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

    @classmethod
    def settled(cls, values: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
        """Flags on top of a file: of a number and a match, what was given on the command line.

        Args:
            values: of all fields.
            given: those in which flags differ from the file.

        Raises:
            ValueError: if both were.
        """
        both = {"learning_rate", "learning_rate_match"} & {*given}
        if len(both) == 2:
            raise ValueError("give --learning-rate or --learning-rate-match, not both")
        if both == {"learning_rate"}:
            return values | {"learning_rate_match": None}
        if both and isinstance(values["learning_rate"], str):  # the file's match
            return values | {"learning_rate": cls.model_fields["learning_rate"].default}
        return values

    @model_validator(mode="before")
    @classmethod
    def _short_match(cls, table: Any) -> Any:
        rate = table.get("learning_rate") if isinstance(table, dict) else None
        if not isinstance(rate, str) or not rate.startswith("match-"):
            return table
        match = parse_match(rate.removeprefix("match-"))
        return table | {"learning_rate": match.rate, "learning_rate_match": str(match)}

    @field_validator("learning_rate_match")
    @classmethod
    def _match(cls, text: str | None) -> str | None:
        return None if text is None else str(parse_match(text))

    @field_validator("dual_clip", mode="before")
    @classmethod
    def _off(cls, bound: Any) -> Any:
        return 0.0 if bound is None else bound  # TOML has no None

    @field_validator("dual_clip")
    @classmethod
    def _above_one(cls, bound: float) -> float:
        if 0 < bound <= 1:
            raise ValueError(f"dual_clip must be above 1, or 0 for none, got {bound:g}")
        return bound

    @field_validator("watch", mode="before")
    @classmethod
    def _one_rule(cls, rules: Any) -> Any:
        return (rules,) if isinstance(rules, str) else rules

    @field_validator("watch")
    @classmethod
    def _rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            parse_rule(rule)
        return rules

    @field_validator("task")
    @classmethod
    def _task(cls, name: str) -> str:
        return training_task(name)

    @field_validator("eval_task")
    @classmethod
    def _eval_task(cls, name: str | None) -> str | None:
        return None if name is None else held_out_task(name)

    @field_validator("method")
    @classmethod
    def _canonical(cls, method: str) -> str:
        return compose(method).name

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        check_consistent(self)
        return self
