"""Pretrain the embedded model on a sloppy demonstrator of the arithmetic task.

The demonstrator guesses at once, forgets carries and slips. Imitating it, the model learns to
answer in the right form and to be right sometimes: the state in which reinforcement learning with
verifiable rewards has something to reinforce. Run as ``python -m orthora.tiny.pretrain --out DIR``.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from orthora.tasks.arithmetic import answer, apply, carries, draw, parse
from orthora.tiny.network import ANSWER, EOS, PAD, build_model, build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

GUESS_OFFSETS = (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)
SLIP_OFFSETS = (-2, -1, 1, 2)
IGNORED = -100  # the label that cross_entropy skips
STEPS = 1600


@dataclass(frozen=True)
class Recipe:
    """What the model learns from, and how.

    Attributes:
        terms: the numbers of terms of the problems.
        weights: their relative frequencies.
        guess: probability of answering at once, without working.
        wrong_guess: probability that such a guess misses on purpose.
        forget: probability of forgetting a carry or borrow.
        slip: probability that a worked step is off by one or two.
        batch: demonstrations per step.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay_from: share of the steps after which the rate falls linearly.
        floor: last learning rate, as a share of the peak.
        weight_decay: weight decay of AdamW.
        clip: largest gradient norm.
    """

    terms: tuple[int, ...] = (2, 3, 4, 5)
    weights: tuple[float, ...] = (0.3, 0.3, 0.25, 0.15)
    guess: float = 0.25
    wrong_guess: float = 0.7
    forget: float = 0.5
    slip: float = 0.03
    batch: int = 96
    lr: float = 2e-3
    warmup: int = 50
    decay_from: float = 0.7
    floor: float = 0.03
    weight_decay: float = 0.05
    clip: float = 1.0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step.

        Args:
            step: the step, from 0.
            steps: how many steps the run has.

        Returns:
            The rate: warm-up, plateau, linear decay.
        """
        rise = min(1.0, (step + 1) / self.warmup)
        left = (1 - step / steps) / (1 - self.decay_from)
        return self.lr * rise * min(1.0, max(self.floor, left))


class Pretrained(NamedTuple):
    """A finished pretraining.

    Attributes:
        model: the float32 model.
        loss: mean cross-entropy over the last tenth of the steps, in nats per response token.
        seconds: wall time of the steps.
    """

    model: "Qwen2ForCausalLM"
    loss: float
    seconds: float


def demonstrate(prompt: str, rng: random.Random, recipe: Recipe) -> str:
    """Answer a prompt as the sloppy demonstrator does.

    Args:
        prompt: a prompt of the arithmetic task.
        rng: source of randomness, advanced by the call.
        recipe: how sloppy.

    Returns:
        A response of the right form, with or without worked lines, often wrong.
    """
    total, operations = parse(prompt)
    if len(operations) > 1 and rng.random() < recipe.guess:
        value = int(answer(prompt))
        if rng.random() < recipe.wrong_guess:
            value = _within(value + rng.choice(GUESS_OFFSETS))
        return f"{ANSWER}{value}"
    text = ""
    for sign, operand in operations:
        result = apply(total, sign, operand)
        if carries(total, sign, operand) and rng.random() < recipe.forget:
            result += -10 if sign == "+" else 10
        if rng.random() < recipe.slip:
            result += rng.choice(SLIP_OFFSETS)
        result = _within(result)
        text += f"{total}{sign}{operand}={result}\n"
        total = result
    return f"{text}{ANSWER}{total}"


def _within(value: int) -> int:
    """Clip a faulty total to two digits, which is all the task ever writes."""
    return min(99, max(0, value))


def _batch(
    tokenizer: "Qwen2Tokenizer", rng: random.Random, recipe: Recipe
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Draw demonstrations of the train split: token ids padded right, labels on responses only."""
    prompts = [
        draw(rng, "train", k) for k in rng.choices(recipe.terms, recipe.weights, k=recipe.batch)
    ]
    texts = [p + demonstrate(p, rng, recipe) for p in prompts]
    rows = [[*row, EOS] for row in tokenizer(texts)["input_ids"]]
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    labels = torch.full_like(ids, IGNORED)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        start = 1 + len(prompt)  # <bos>, then one token per character of the prompt
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = ids[i, start : len(row)]
    return ids, labels


def pretrain(
    steps: int, *, seed: int = 0, recipe: Recipe | None = None, report_every: int = 50
) -> Pretrained:
    """Train a new model on the CPU, leaving torch's global generator as it was.

    The result depends on (steps, seed, recipe) and on torch's number of threads alone.

    Args:
        steps: optimizer steps; the learning rate schedule stretches over them.
        seed: seed of the initial weights and of the demonstrations.
        recipe: what to learn from, the default recipe if None.
        report_every: steps between progress lines on standard error; 0 for none.

    Returns:
        The model, its last loss and the time taken.

    Raises:
        ValueError: if there is not at least one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; train for at least 1")
    recipe, rng, tokenizer = recipe or Recipe(), random.Random(seed), build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model().train()
    optimizer = _optimizer(model, recipe)
    losses, began = list[float](), time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step, steps)
        loss = _loss(model, *_batch(tokenizer, rng, recipe))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.item())
        if report_every and (step + 1) % report_every == 0:
            _report(losses[-report_every:], step + 1, steps, time.perf_counter() - began)
    last = losses[-max(1, steps // 10) :]
    return Pretrained(model.eval(), sum(last) / len(last), time.perf_counter() - began)


def _optimizer(model: "Qwen2ForCausalLM", recipe: Recipe) -> torch.optim.Optimizer:
    """Build AdamW with a short memory of squared gradients, as suits a short run."""
    return torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )


def _loss(
    model: "Qwen2ForCausalLM", ids: Int[Tensor, "b t"], labels: Int[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the labelled tokens, in nats."""
    # No attention mask: padding lies on the right, where causal attention never looks.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _report(losses: list[float], done: int, steps: int, seconds: float) -> None:
    """Print one progress line."""
    mean, speed = sum(losses) / len(losses), done / seconds
    left = f"{speed:.2f} steps/s  ETA {(steps - done) / speed:.0f} s"
    print(f"step {done}/{steps}  loss {mean:.4f}  {left}", file=sys.stderr, flush=True)


def save(result: Pretrained, out: Path, record: dict[str, object]) -> None:
    """Write model, tokenizer and record in one move: the folder is complete or absent.

    Args:
        result: what to write; its weights are rounded to bfloat16 in place.
        out: the folder, absent or empty.
        record: how it was made, written as ``pretraining.json``.

    Raises:
        ValueError: if ``out`` holds anything.
    """
    check_empty(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        result.model.bfloat16().save_pretrained(part)
        build_tokenizer().save_pretrained(part)
        (part / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in part.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_empty(out: Path) -> None:
    """Refuse a folder that holds anything.

    Args:
        out: the folder, absent or empty.

    Raises:
        ValueError: if it is a file or holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out is {str(out)!r}, which is not empty; name a new folder")


def main(arguments: list[str] | None = None) -> None:
    """Pretrain and save, as the command line says.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` if None.

    Raises:
        ValueError: if the output folder holds anything, or a number is out of range.
    """
    parser = argparse.ArgumentParser(prog="python -m orthora.tiny.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="weights and demonstrations (0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps ({STEPS})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; changes rounding (1)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        raise ValueError(f"threads is {options.threads}; give at least 1")
    check_empty(options.out)  # before the minutes of training, not after
    torch.set_num_threads(options.threads)
    recipe = Recipe()
    result = pretrain(options.steps, seed=options.seed, recipe=recipe)
    numbers = f"--seed {options.seed} --steps {options.steps} --threads {options.threads}"
    record = {
        "command": f"python -m orthora.tiny.pretrain --out DIR {numbers}",
        "seed": options.seed,
        "steps": options.steps,
        "threads": options.threads,
        "seconds": round(result.seconds, 1),
        "loss": round(result.loss, 4),
        "torch": torch.__version__,
        "recipe": asdict(recipe),
    }
    save(result, options.out, record)
    print(f"saved {options.out}: loss {result.loss:.4f} after {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
