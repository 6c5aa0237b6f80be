"""Benchmark of the verifiers: ``python bench/verify.py [--quick]``.

Verdicts per second of each rule on real answers, and of the default rule on a batch made to hurt.
Where computer algebra is asked, the same answers are judged once more from eight threads. Prints
tables and writes them as JSON.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from init import Row, cpu_name, machine, show, slug

from orthora.rewards import gold_of, math_verdict
from orthora.rewards.maths import RULES, symbolic_equal
from orthora.rewards.pool import WORKERS, shared_pool
from orthora.types import Verdict

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
RESULTS = HERE / "results-verify"
THREADS = 8

Pair = tuple[str, str]

HOSTILE = (
    "Answer: 9^{9^{9^9}}",
    "Answer: 3^{1000000000}",
    "Answer: (((9^{99})^{99})^{99})^{99}",
    "Answer: 9!!!!",
    "Answer: " + "+".join(["1"] * 20_000),
    "Answer: " + "(" * 3_000 + "25" + ")" * 3_000,
    r"\boxed{" * 3_000,
    "<think>" * 6_000,
    "\\" * 40_000,
    "Answer: 25\x00",
    "Answer: \u200f25",
    "\n".join(f"Answer: {n}" for n in range(1_000)),
    "Answer: __import__('os').getpid()",
    r"Answer: \sqrt{" * 10 + "25" + "}" * 10,
    r"Answer: \frac{x^{999}-1}{x-1}",
    r"Answer: (a+b+c+d+e+f)^{500}-(a+b)^{500}",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 answers of each kind")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{slug(cpu_name())}.json")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no labelled data at {DATA}", file=sys.stderr)
        return 1
    limit = 200 if options.quick else 2_000
    found = {"machine": machine(), "rows": [*speeds(limit), *hostile()]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    show("verdicts", found["rows"])
    print(f"\n{options.json}")
    return 0


def speeds(limit: int) -> list[Row]:
    """Every rule on GSM8K's model solutions, and the default rule on other real answers."""
    shared_pool().equal("1", "1")  # so that no row pays for the start of the workers
    solutions = gsm8k_solutions()[:limit]
    rows = [measure("gsm8k solutions", rule, solutions) for rule in RULES]
    for name, pairs in (("math500 golds", math500()[:limit]), ("labelled cases", cases()[:limit])):
        rows += [measure(name, "robust", pairs), measure(name, "robust", pairs, THREADS)]
    return rows


def hostile() -> list[Row]:
    """128 hostile answers, and whether the pool still answers afterwards."""
    pairs = [(HOSTILE[n % len(HOSTILE)], "25") for n in range(128)]
    rows = [measure("hostile", "robust", pairs, threads) for threads in (1, THREADS)]
    alive = symbolic_equal(r"\sqrt{625}", "25") == (True, "symbolically equal")
    return [row | {"pool answers after": alive} for row in rows]


def measure(name: str, rule: str, pairs: list[Pair], threads: int = 1) -> Row:
    """Judge all pairs and count."""

    def judge(pair: Pair) -> Verdict:
        return math_verdict(*pair, rule=rule)

    began = time.perf_counter()
    if threads == 1:
        verdicts = list(map(judge, pairs))
    else:
        with ThreadPoolExecutor(threads) as executor:
            verdicts = list(executor.map(judge, pairs))
    seconds = time.perf_counter() - began
    reasons = Counter(verdict.reason for verdict in verdicts)
    return {
        "answers": name,
        "rule": rule,
        "threads": threads,
        "workers": WORKERS,
        "verdicts": len(pairs),
        "correct": sum(verdict.correct for verdict in verdicts),
        "timeouts": reasons["symbolic timeout"],
        "errors": sum(count for reason, count in reasons.items() if "error" in reason),
        "seconds": seconds,
        "per second": len(pairs) / seconds,
    }


def rows_of(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def gsm8k_solutions() -> list[Pair]:
    """Outputs of real models, with the last line spelled as the rules want it."""
    return [
        (re.sub(r"(?m)^A: (.*)", r"#### \1\nAnswer: \1", row["response"]), gold_of(row["gold"]))
        for row in rows_of("verifier_cases.jsonl")
        if "grade-school-math" in row["source"]
    ]


def math500() -> list[Pair]:
    return [(rf"\boxed{{{row['answer']}}}", row["answer"]) for row in rows_of("math500/test.jsonl")]


def cases() -> list[Pair]:
    """Labelled cases of other projects: the ones that need computer algebra most."""
    return [
        ("Answer: " + " ".join(row["response"].split()), gold_of(row["gold"]))
        for row in rows_of("verifier_cases.jsonl")
        if not row["config_dependent"] and len(row["response"]) <= 200
    ]


if __name__ == "__main__":
    sys.exit(main())
