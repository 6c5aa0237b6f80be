"""Measure the embedded model, write its ``card.json`` and ``README.md``.

Every number of both files is measured here or read from the pretraining's own record.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from orthora.stats import bootstrap_interval, pass_at_k
from orthora.tasks.arithmetic import Sign, apply, carries, problems
from orthora.tiny import load, path
from orthora.tiny.network import EOS
from orthora.types import Problem

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

NEW_TOKENS = 64
MEASURED = 256
SAMPLES = 16
PASSES = 8
MIXTURES = {"3": (3,), "4": (4,), "3 and 4": (3, 4)}

_LINE = re.compile(r"([0-9]+)([+-])([0-9]+)=([0-9]+)")


@dataclass(frozen=True)
class Response:
    """One generated answer.

    Attributes:
        text: the decoded tokens after the prompt, without ``<eos>``.
        tokens: how many tokens were generated, ``<eos>`` included.
        ended: whether it closed with ``<eos>``.
    """

    text: str
    tokens: int
    ended: bool


def is_correct(response: Response, gold: str) -> bool:
    """Score one response by the task's rule.

    Args:
        response: the generated answer.
        gold: the true answer.

    Returns:
        True where the response ended and the text after its last ``Answer:`` equals the gold.
    """
    _, marker, tail = response.text.rpartition("Answer:")
    return response.ended and bool(marker) and tail.strip() == gold


@torch.no_grad()
def respond(
    model: "Qwen2ForCausalLM",
    tokenizer: "Qwen2Tokenizer",
    tasks: list[Problem],
    samples: int,
    *,
    seed: int | None,
) -> list[list[Response]]:
    """Generate answers with the model's own generation settings.

    Args:
        model: the model, on the CPU.
        tokenizer: its tokenizer.
        tasks: problems with plain-text prompts.
        samples: answers per problem.
        seed: seed of the sampling, or None to decode greedily. Torch's global generator is left
            as it was.

    Returns:
        One list of ``samples`` responses per problem.
    """
    inputs = tokenizer([str(t.prompt) for t in tasks], padding=True, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        ids = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **inputs,
            do_sample=seed is not None,
            num_return_sequences=samples,
            max_new_tokens=NEW_TOKENS,
        )
    flat = [_response(tokenizer, row) for row in ids[:, width:].tolist()]
    return [flat[i : i + samples] for i in range(0, len(flat), samples)]


def _response(tokenizer: "Qwen2Tokenizer", row: list[int]) -> Response:
    """Cut one row of generated ids at its first ``<eos>``."""
    ended = EOS in row
    kept = row[: row.index(EOS)] if ended else row
    return Response(str(tokenizer.decode(kept)), len(kept) + ended, ended)


def faults(responses: list[Response]) -> dict[str, float]:
    """Take the responses apart into the demonstrator's faults.

    Args:
        responses: generated answers.

    Returns:
        ``guessed``: share of responses without a worked line; ``carry_step_right`` and
        ``plain_step_right``: share of the worked lines, with and without a carry or borrow, whose
        result follows from the numbers on the line; ``carry_forgotten``: share of the former that
        miss by exactly the carry.
    """
    tally = {True: [0, 0], False: [0, 0]}
    guessed = forgotten = 0
    for response in responses:
        lines = _LINE.findall(response.text)
        guessed += not lines
        for total, sign, operand, result in lines:
            a, b, sign = int(total), int(operand), cast(Sign, sign)
            carry, miss = carries(a, sign, b), int(result) - apply(a, sign, b)
            tally[carry][0] += 1
            tally[carry][1] += miss == 0
            forgotten += carry and miss == (-10 if sign == "+" else 10)
    return {
        "guessed": guessed / len(responses),
        "carry_step_right": tally[True][1] / max(1, tally[True][0]),
        "carry_forgotten": forgotten / max(1, tally[True][0]),
        "plain_step_right": tally[False][1] / max(1, tally[False][0]),
    }


def measure(
    model: "Qwen2ForCausalLM",
    tokenizer: "Qwen2Tokenizer",
    tasks: list[Problem],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, object]:
    """Measure a model on problems, by sampling at T = 1 and greedily.

    Args:
        model: the model, on the CPU.
        tokenizer: its tokenizer.
        tasks: the problems.
        samples: sampled answers per problem, at least 8.
        seed: seed of the sampling and of the bootstrap.

    Returns:
        Rates in 0..1, ``tokens`` as mean length in tokens, ``faults`` as in `faults`.
    """
    sampled = respond(model, tokenizer, tasks, samples, seed=seed)
    greedy = respond(model, tokenizer, tasks, 1, seed=None)
    hits = [
        sum(is_correct(r, t.answer) for r in row) for row, t in zip(sampled, tasks, strict=True)
    ]
    rates = [h / samples for h in hits]
    flat = [r for row in sampled for r in row]
    return {
        "problems": len(tasks),
        "samples": samples,
        "pass@1": sum(rates) / len(rates),
        "pass@1_interval": bootstrap_interval(rates, seed=seed),
        f"pass@{PASSES}": sum(pass_at_k(samples, h, PASSES) for h in hits) / len(hits),
        "greedy": sum(is_correct(g, t.answer) for (g,), t in zip(greedy, tasks, strict=True))
        / len(tasks),
        "truncated": sum(not r.ended for r in flat) / len(flat),
        "tokens": sum(r.tokens for r in flat) / len(flat),
        "faults": faults(flat),
    }


def build_card(folder: Path, *, count: int = MEASURED, samples: int = SAMPLES) -> dict[str, object]:
    """Measure the model of a folder on both ends of the split.

    Args:
        folder: what `orthora.tiny.pretrain` wrote.
        count: problems per split and number of terms.
        samples: sampled answers per problem, at least 8.

    Returns:
        The card: size in parameters and in bytes of weights, the pretraining's record, the rule,
        and a measurement per split and per number of terms.

    Raises:
        FileNotFoundError: if the folder lacks the weights or the pretraining's record.
    """
    model, tokenizer = load(folder=folder)
    measured = {}
    for split in ("train", "test"):
        for name, terms in MIXTURES.items():
            tasks = problems(split, count, seed=0, terms=terms)
            measured[f"{split}, {name} terms"] = result = measure(
                model, tokenizer, tasks, samples=samples
            )
            print(f"{split}, {name} terms: {json.dumps(result)}", flush=True)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "pretraining": json.loads((folder / "pretraining.json").read_text()),
        "rule": f"<eos> within {NEW_TOKENS} new tokens, text after the last 'Answer:' equals gold",
        "temperature": 1.0,
        "measured": measured,
    }


def readme(card: dict) -> str:
    """Lay a card out as Markdown.

    Args:
        card: the value of `build_card`.

    Returns:
        The text of the model folder's ``README.md``.
    """
    made = card["pretraining"]
    header = ["split, terms", "pass@1, T = 1 (95 %)", f"pass@{PASSES}", "greedy", "truncated"]
    header += ["tokens", "guessed", "carry step right", "plain step right"]
    rows = [header, ["---"] * len(header)]
    for name, m in card["measured"].items():
        low, high = m["pass@1_interval"]
        row = [name, f"{m['pass@1']:.3f} ({low:.3f}..{high:.3f})", f"{m[f'pass@{PASSES}']:.3f}"]
        row += [f"{m['greedy']:.3f}", f"{m['truncated']:.3f}", f"{m['tokens']:.1f}"]
        keys = ("guessed", "carry_step_right", "plain_step_right")
        rows.append(row + [f"{m['faults'][key]:.2f}" for key in keys])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    one = next(iter(card["measured"].values()))
    return f"""# Embedded model

A Qwen2 network of {card["parameters"]:,} parameters ({card["weights_bytes"]:,} bytes of bfloat16
weights) that adds and subtracts chains of numbers, on purpose not well. It exists so that adapter
training with verifiable rewards can be run and tested in minutes on a CPU; it knows nothing else.

Made by `{made["command"]}`
in {made["seconds"]:.0f} s, from demonstrations of the train split only. Measured by
`python -m orthora.tiny.card`; full figures in `card.json`.

{table}

Each row: {one["problems"]} problems, {one["samples"]} samples per problem, intervals by bootstrap.
Rule: {card["rule"]}.
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure a model folder and write its ``card.json`` and ``README.md``.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(prog="python -m orthora.tiny.card", description=__doc__)
    parser.add_argument("--model", type=Path, default=path(), help="folder (the embedded model)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in the pretraining, for figures that repeat
    card = build_card(options.model)
    (options.model / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (options.model / "README.md").write_text(readme(card))


if __name__ == "__main__":
    main()
