"""Benchmark of a training step: ``make bench-step``.

orthora's step, with all its measurements, against stock TRL and PEFT's LoRA on the same model,
prompts, lengths and seeds: whole steps alternate in one process, in CPU time, medians. The learning
rate is 0, so that both policies stay the same and draw responses of the same lengths; in the cases
of fixed length the end token is out of reach of both. Then orthora's cost against rank, group size
and response length.

    python bench/step.py [--quick] [--json FILE]
    python bench/step.py --readme docs/training.md     # render its table from the JSON file
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import init
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from orthora import models, tiny
from orthora.config import TrainConfig
from orthora.quiet import quiet_libraries
from orthora.rewards import math_verdict
from orthora.sampling import Vocabulary
from orthora.tasks import arithmetic
from orthora.train.loading import load_parts
from orthora.train.trainer import RLVRTrainer
from orthora.train.world import World

Row = dict[str, Any]
RESULTS = init.RESULTS.parent / "results-step"
BEGIN, END = "<!-- bench-step -->", "<!-- /bench-step -->"
PROMPTS, MINI, MICRO = 16, 4, 32


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: of the rows.
        model: folder.
        length: of every response; 0 leaves it to the policy, up to 56 tokens.
        group: responses per prompt.
        rank: of the adapter.
        threads: of the process.
    """

    name: str
    model: str
    length: int = 0
    group: int = 8
    rank: int = 16
    threads: int = 1

    def config(self, out: str, steps: int) -> TrainConfig:
        """As orthora takes it."""
        return TrainConfig(
            model=self.model,
            out=out,
            method="lora",
            task="arithmetic",
            rank=self.rank,
            alpha=2 * self.rank,
            learning_rate=0.0,
            steps=steps,
            prompts_per_step=PROMPTS,
            group_size=self.group,
            mini_batch_prompts=MINI,
            micro_batch=MICRO,
            max_prompt_tokens=24,
            max_response_tokens=self.length or 56,
            overlong_buffer=0,
            patience=0,
            save_every=0,
        )


class Stopwatch:
    """CPU seconds of each training step, in total and by phase."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.between: Callable[[], None] = lambda: None  # called after every step, not counted
        self._phases: dict[str, float] = {}
        self._began = time.process_time()

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Count what a method takes as a phase."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self._phases[phase] = self._phases.get(phase, 0.0) + time.process_time() - began

        setattr(owner, name, timed)

    def lap(self, tokens: float) -> None:
        """A training step has ended."""
        now = time.process_time()
        rest = now - self._began - sum(self._phases.values())
        self.steps.append({**self._phases, "update": rest, "total": now - self._began})
        self.steps[-1]["tokens"] = tokens
        self.between()
        self.start()

    def start(self) -> None:
        """A training step begins."""
        self._phases, self._began = {}, time.process_time()


def ours(case: Case, steps: int, out: str, **changes: Any) -> tuple[Any, Stopwatch]:
    """Orthora's trainer, ready to run."""
    config = TrainConfig(**(case.config(out, steps).model_dump() | changes))
    watch = Stopwatch()
    parts = load_parts(config, None, "cpu")
    trainer = RLVRTrainer(config, parts, World(), Path(out), lambda row: None)
    if case.length:
        engine = trainer.collector.generate
        engine._vocabulary = Vocabulary((), parts.tokenizer.pad_token_id)
    watch.wrap(trainer.collector, "generate", "rollout")
    trainer._on_step = lambda row: watch.lap(row["length"] * PROMPTS * case.group)
    watch.wrap(trainer._scorer, "logps", "measure")
    return trainer, watch


def stock(case: Case, steps: int, out: str) -> tuple[Any, Stopwatch]:
    """TRL's GRPOTrainer with PEFT's LoRA and the same settings."""
    config = case.config(out, steps)
    watch = Stopwatch()
    tokenizer = models.load_tokenizer(case.model)
    base = models.load_model(case.model, "float32", "cpu")
    lora = LoraConfig(r=case.rank, lora_alpha=2 * case.rank, target_modules="all-linear")
    model = get_peft_model(base, lora)
    problems = arithmetic.problems("train", config.train_problems, seed=config.seed)
    data = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems])
    accumulate = MINI * case.group // MICRO if MINI * case.group >= MICRO else 1
    micro = MINI * case.group // accumulate
    args = GRPOConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        seed=config.seed,
        max_steps=steps * PROMPTS // MINI,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        steps_per_generation=accumulate * PROMPTS // MINI,
        num_generations=case.group,
        max_completion_length=config.max_response_tokens,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]} if case.length else None,
        top_k=0,
        epsilon=0.2,
        epsilon_high=0.28,
        delta=10.0,
        learning_rate=0.0,
        weight_decay=0.1,
        gradient_checkpointing=False,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        return [1.0 if math_verdict(text, gold).correct else -1.0 for text, gold in pairs]

    trainer = GRPOTrainer(
        model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer
    )
    watch.wrap(trainer, "_generate", "rollout")

    class Lap(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (PROMPTS // MINI) == 0:
                lengths = trainer._metrics["train"]["completions/mean_length"]
                watch.lap(lengths[-1] * PROMPTS * case.group)

    trainer.add_callback(Lap())
    return trainer, watch


def alternate(case: Case, steps: int) -> list[Row]:
    """Both trainers, a step of the one and a step of the other; medians without the first."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "orthora": ours(case, steps, f"{scratch}/ours"),
            "TRL + PEFT": stock(case, steps, f"{scratch}/stock"),
        }
        interleave([(trainer, watch) for trainer, watch in runs.values()])
    rows = []
    for name, (_, watch) in runs.items():
        kept = watch.steps[1:]
        row: Row = {"case": case.name, "method": name, "threads": case.threads}
        for key in dict.fromkeys(key for step in kept for key in step):
            row[key if key == "tokens" else f"{key}_s"] = statistics.median(
                step.get(key, 0.0) for step in kept
            )
        row["ms_per_token"] = 1e3 * statistics.median(s["total"] / s["tokens"] for s in kept)
        rows.append(row)
    for row in rows:
        row["ratio"] = row["ms_per_token"] / rows[1]["ms_per_token"]
    return rows


def interleave(runs: list[tuple[Any, Stopwatch]]) -> None:
    """Run trainers step by step in turn, each in a thread that waits for its turn."""
    turns = [threading.Semaphore(0) for _ in runs]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        trainer, watch = runs[index]

        def pass_on() -> None:
            turns[(index + 1) % len(runs)].release()
            turns[index].acquire()

        watch.between = pass_on
        turns[index].acquire()
        watch.start()
        try:
            trainer.train()
        except BaseException as error:
            failures.append(error)
        for turn in turns:
            turn.release()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    turns[0].release()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def alone(case: Case, steps: int) -> Row:
    """Orthora's step by itself, for the cost curves."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, watch = ours(case, steps, f"{scratch}/ours")
        watch.start()
        trainer.train()
    kept = watch.steps[1:]
    row: Row = {"case": case.name, "rank": case.rank, "group": case.group, "length": case.length}
    for key in kept[0]:
        row[key if key == "tokens" else f"{key}_s"] = statistics.median(s[key] for s in kept)
    row["ms_per_token"] = 1e3 * row["total_s"] / row["tokens"]
    return row


def larger_model(folder: Path) -> str:
    """A random Qwen2 of width 256 and 6 layers with the embedded tokenizer; 5.4 M parameters."""
    target = folder / "qwen2-256x6"
    if not (target / "config.json").is_file():
        tokenizer = models.load_tokenizer("tiny")
        config = Qwen2Config(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return str(target)


def peaks(case: Case) -> dict[str, float]:
    """Peak memory of a process that takes two steps, by trainer (MB)."""
    from whole_model import run_one

    code = "import sys; sys.path.insert(0, sys.argv[1]); import step; step.take(*sys.argv[2:])"
    fields = json.dumps(case.__dict__)
    return {
        name: run_one([sys.executable, "-c", code, str(Path(__file__).parent), name, fields])[
            "peak_mb"
        ]
        for name in ("ours", "stock")
    }


def take(name: str, fields: str) -> None:
    """Two steps of one trainer, in a process of its own."""
    quiet_libraries()
    case = Case(**json.loads(fields))
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, _ = {"ours": ours, "stock": stock}[name](case, 2, f"{scratch}/run")
        trainer.train()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the embedded model alone, few steps")
    default = RESULTS / f"{init.slug(init.cpu_name())}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the numbers go")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of the model")
    parser.add_argument("--readme", type=Path, help="render its table from all results and stop")
    options = parser.parse_args()
    if options.readme:
        return render_into(options.readme)
    quiet_libraries()
    steps = 4 if options.quick else 12
    larger = larger_model(options.folder)
    embedded = str(tiny.path())
    cases = [Case("embedded, natural length", embedded)]
    if not options.quick:
        cases += [
            Case("embedded, natural length", embedded, threads=2),
            Case("256 x 6, 32 tokens", larger, 32),
            Case("256 x 6, 64 tokens", larger, 64),
            Case("256 x 6, 64 tokens", larger, 64, threads=2),
        ]
    compared: list[Row] = []
    for case in cases:
        print(case.name, f"{case.threads} thread(s)", file=sys.stderr, flush=True)
        rows = alternate(case, steps)
        for row, peak in zip(rows, peaks(case).values(), strict=True):
            row["peak_mb"] = peak
        compared += rows
    curves: list[Row] = []
    for case in [] if options.quick else _curves(larger):
        print(case, file=sys.stderr, flush=True)
        curves.append(alone(case, 5))
    found = {"machine": init.machine(), "compared": compared, "curves": curves}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    init.show("a step, against TRL", compared)
    init.show("cost of a step", curves)
    print(f"\n{options.json}")
    return 0


def _curves(model: str) -> list[Case]:
    """One setting varied at a time around rank 16, G = 8, 32 tokens."""
    cases = [Case("rank", model, 32, rank=r) for r in (1, 4, 16, 64, 128)]
    cases += [Case("group size", model, 32, group=g) for g in (2, 4, 8, 16)]
    return cases + [Case("length", model, n) for n in (16, 32, 64, 128, 256)]


def markdown(results: list[Row]) -> str:
    """The table of the docs, for each machine."""
    return "\n\n".join("\n".join(_tables(found)) for found in results)


def _tables(found: Row) -> list[str]:
    machine = found["machine"]
    lines = [
        f"**{machine['cpu']}**, torch {machine['torch']}, {machine['time'][:10]}; CPU seconds:",
        "",
        "| case | threads | trainer | step | rollout | measuring | update | peak memory | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["compared"]:
        measure = f"{row['measure_s']:.2f}" if "measure_s" in row else ""
        lines.append(
            f"| {row['case']} | {row['threads']} | {row['method']} | {row['total_s']:.2f} | "
            f"{row['rollout_s']:.2f} | {measure} | {row['update_s']:.2f} | "
            f"{row['peak_mb'] / 1024:.2f} GB | {row['ratio']:.2f} |"
        )
    if found["curves"]:
        lines += ["", "| orthora, 256 x 6 | rank | G | tokens | step | ms per token |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in found["curves"]:
        lines.append(
            f"| {row['case']} | {row['rank']} | {row['group']} | {row['length']} | "
            f"{row['total_s']:.2f} | {row['ms_per_token']:.3f} |"
        )
    return lines


def all_results() -> list[Row]:
    """Every file of results, the newest first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda one: one["machine"]["time"], reverse=True)


def render_into(page: Path) -> int:
    """Replace what stands between the marks in a page."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(all_results())}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
