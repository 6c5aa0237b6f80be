"""An evaluation on the disk: every sample kept, so that scoring again needs no model.

The folder holds ``config.toml``, ``environment.json``, ``problems.jsonl`` (prompts as the model
reads them, golds, tests), ``samples.jsonl`` (one line per response, as they come), and after
scoring ``verdicts.jsonl`` (in the problems' order) and ``scores.json``.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from orthora.config import EvalConfig, build, read_toml, to_toml
from orthora.evaluate.result import EvalResult, Scored
from orthora.evaluate.scoring import Drawn
from orthora.store import environment, new_folder, write_atomic, write_json
from orthora.strict import differences
from orthora.types import Problem

CONFIG, PROBLEMS, SAMPLES = "config.toml", "problems.jsonl", "samples.jsonl"
VERDICTS, SCORES = "verdicts.jsonl", "scores.json"
_SYNC = 64
"""Samples after which the disk is waited for."""


def open_folder(
    out: Path,
    config: EvalConfig,
    problems: Sequence[Problem],
    prompts: Sequence[str],
    weights: str,
) -> list[str]:
    """Make the folder, or check that it holds this very evaluation, to go on with it.

    Args:
        out: where.
        config: of the evaluation, complete.
        problems: to be sampled.
        prompts: as the model reads them.
        weights: fingerprint of what is sampled from.

    Returns:
        The prompts as they were when the evaluation began: a chat template may hold the date.

    Raises:
        ValueError: if there is something else in the folder, or an evaluation with another config,
            of other problems or of other weights.
    """
    lines = "".join(
        json.dumps({**asdict(problem), "text": text}) + "\n"
        for problem, text in zip(problems, prompts, strict=True)
    )
    if not (out / CONFIG).is_file():
        with new_folder(out) as temporary:
            write_atomic(temporary / CONFIG, to_toml(config))
            story = {"weights": weights, "problems": _digest(lines.encode())}
            write_json(temporary / "environment.json", environment(0) | story)
            write_atomic(temporary / PROBLEMS, lines)
        return list(prompts)
    if changed := differences(stored_config(out).model_dump(mode="json"), config):
        raise ValueError(
            f"{out} holds an evaluation with another config; these differ: {changed}. "
            "Choose another out; to judge the same samples by another rule: orthora rescore"
        )
    if stored_problems(out) != list(problems):
        raise ValueError(
            f"the problems are not those of {out}: the data or its order has changed; put them "
            "back, or choose another out"
        )
    made = _object(out / "environment.json")
    if made.get("weights", weights) != weights:
        raise ValueError(
            f"{out} holds samples of other weights: the model or adapter of that name has changed "
            "since; choose another out"
        )
    return [
        str(_parsed(line, out / PROBLEMS, number).get("text"))
        for number, line in enumerate(_lines(out / PROBLEMS), 1)
    ]


def stored_config(out: Path) -> EvalConfig:
    """The config of an evaluation folder.

    Raises:
        ValueError: if it is none.
    """
    if not (out / CONFIG).is_file() or not (out / PROBLEMS).is_file():
        raise ValueError(f"{out} is no evaluation folder (no {CONFIG} with {PROBLEMS})")
    return build(EvalConfig, read_toml(out / CONFIG))


def stored_problems(out: Path) -> list[Problem]:
    """The problems of an evaluation folder.

    Raises:
        ValueError: naming the line that can't be read.
    """
    problems = []
    for number, line in enumerate(_lines(out / PROBLEMS), 1):
        row = _parsed(line, out / PROBLEMS, number)
        try:
            tests = tuple(map(str, row["tests"]))
            problems.append(Problem(row["prompt"], row["answer"], row["id"], tests, row["setup"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{out / PROBLEMS}, line {number} is no problem ({error!r}); sample anew"
            ) from error
    return problems


def problems_digest(out: Path) -> str:
    """A hash of an evaluation's problems and prompts, as they were when it began."""
    made = _object(out / "environment.json")
    return made.get("problems") or _digest((out / PROBLEMS).read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class SampleFile:
    """The samples of an evaluation: what is there, and where more are added by one process.

    Attributes:
        drawn: the samples so far, in the order in which they came.
    """

    def __init__(self, out: Path, problems: Sequence[Problem], samples: int) -> None:
        """Read what is there.

        Args:
            out: the evaluation folder.
            problems: of it, in order.
            samples: of each.

        Raises:
            ValueError: naming a line that is none of this evaluation's samples, or comes twice. A
                last line without its end, as a kill leaves it, is passed over.
        """
        self._path, self._ids = out / SAMPLES, [problem.id for problem in problems]
        self._samples = samples
        self._whole = 0
        self.drawn = list(self._read()) if self._path.is_file() else []
        self._file: TextIO | None = None

    def _read(self) -> Iterator[Drawn]:
        places = {name: index for index, name in enumerate(self._ids)}
        seen: set[tuple[int, int]] = set()
        data = self._path.read_bytes()
        self._whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: self._whole].splitlines(), 1):
            row = _parsed(line.decode("utf-8", "replace"), self._path, number)
            try:
                index, sample = places[row["problem"]], row["sample"]
                one = Drawn(index, sample, row["text"], row["tokens"], row["ended"])
                wrong = [type(x) for x in one] != [int, int, str, int, bool]
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path}, line {number} is no sample of this evaluation ({error}); "
                    "remove that line"
                ) from error
            if wrong:
                raise ValueError(
                    f"{self._path}, line {number} has a value of a wrong type; remove that line"
                )
            if not 0 <= sample < self._samples:
                raise ValueError(
                    f"{self._path}, line {number} is sample {sample!r} of {row['problem']!r}, and "
                    f"there are {self._samples}, from 0; remove that line"
                )
            if one[:2] in seen:
                raise ValueError(
                    f"{self._path}, line {number} has sample {sample} of {row['problem']!r} again; "
                    "remove that line"
                )
            seen.add(one[:2])
            yield one

    @property
    def missing(self) -> int:
        """Samples that are not there yet."""
        return len(self._ids) * self._samples - len(self.drawn)

    def check_complete(self) -> None:
        """Every problem has all of its samples.

        Raises:
            ValueError: if not.
        """
        if self.missing:
            raise ValueError(
                f"{self._path} has {len(self.drawn)} of {len(self._ids) * self._samples} samples; "
                "the orthora eval that began it goes on where it ended"
            )

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Inside, `add` writes; half a line at the end is cut off first."""
        with self._path.open("a", encoding="utf-8") as self._file:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"another process is sampling into {self._path.parent}; let it end, or choose "
                    "another out"
                ) from error
            try:
                self.drawn = list(self._read())  # again: another process may have ended just now
                os.truncate(self._path, self._whole)
                yield
            finally:
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, one: Drawn, key: int) -> None:
        """Keep a sample.

        Args:
            one: the sample.
            key: of its random stream.
        """
        assert self._file is not None, "within appending()"
        row = {"problem": self._ids[one.problem], "sample": one.number, "key": key}
        row |= {"tokens": one.tokens, "ended": one.ended, "text": one.text}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.drawn.append(one)
        if len(self.drawn) % _SYNC == 0:
            os.fsync(self._file.fileno())


def write_scores(
    out: Path, config: EvalConfig, problems: Sequence[Problem],
    groups: Sequence[Sequence[tuple[Drawn, Scored]]], result: EvalResult,
) -> None:  # fmt: skip
    """Write every verdict, and then the scores.

    Args:
        out: the evaluation folder.
        config: with the rule that counts.
        problems: in order.
        groups: samples with their verdicts, by problem.
        result: of them all.
    """
    lines = []
    for problem, group in zip(problems, groups, strict=True):
        for one, scored in group:
            rules = {
                rule: None if verdict is None else asdict(verdict)
                for rule, verdict in scored.verdicts.items()
            }
            row = {"problem": problem.id, "sample": one.number, "outcome": scored.outcome}
            lines.append(json.dumps(row | {"verdicts": rules}) + "\n")
    write_atomic(out / VERDICTS, "".join(lines))
    write_json(out / SCORES, {"config": config.model_dump(mode="json"), **asdict(result)})


def stored_scores(out: Path) -> dict[str, Any]:
    """The scores of an evaluation folder, with the config under which they were made.

    Raises:
        ValueError: if there are none yet.
    """
    stored_config(out)
    if not (out / SCORES).is_file():
        raise ValueError(f"{out} has no scores yet; let orthora eval finish, or: orthora rescore")
    scores = _object(out / SCORES)
    if not isinstance(scores.get("config"), dict):
        raise ValueError(f"{out / SCORES} is damaged; write it again: orthora rescore {out}")
    return scores


def stored_verdicts(out: Path) -> dict[str, list[bool | None]]:
    """By problem, whether each sample is correct; None where it has no score.

    Raises:
        ValueError: if there are no scores yet, or a line can't be read.
    """
    stored_scores(out)
    found: dict[str, list[bool | None]] = {}
    for number, line in enumerate(_lines(out / VERDICTS), 1):
        row = _parsed(line, out / VERDICTS, number)
        try:
            verdict = next(iter(row["verdicts"].values()))
            found.setdefault(row["problem"], []).append(verdict and bool(verdict["correct"]))
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ValueError(
                f"{out / VERDICTS}, line {number} is no verdict; write them again: orthora rescore"
            ) from error
    return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; write it again: orthora rescore {path.parent}")
    return path.read_text(encoding="utf-8").splitlines()


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file of an evaluation holds."""
    return _parsed(path.read_text(encoding="utf-8"), path, 1) if path.is_file() else {}


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON; remove that line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is no JSON object; remove that line")
    return row
