"""RLVR through adapters: a config in, a run folder out."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from orthora import models, store
from orthora.adapters import (
    base_policy,
    export_plain,
    folded,
    folds_exactly,
    has_products,
    merge_fidelity,
    write_merged,
)
from orthora.config import TrainConfig, build, read_toml, to_toml
from orthora.config.starting import check_start
from orthora.evaluate import EvalResult, score
from orthora.failures import NotFinite
from orthora.methods import compose
from orthora.rewards import SandboxError
from orthora.sampling import Sampling
from orthora.signals import terminable
from orthora.train import checkpoints
from orthora.train.loading import Parts, load_parts, problems_record
from orthora.train.matching import matched
from orthora.train.progress import StepProgress
from orthora.train.result import Ending, RunResult, failure_of, result_of, write_result
from orthora.train.rewards import OwnReward, unjudged
from orthora.train.sharding import gathered
from orthora.train.trainer import Metrics, RLVRTrainer
from orthora.train.watchdog import RollBack, Watchdog, cut_metrics, last_good
from orthora.train.world import World, join
from orthora.trained import base_fingerprint
from orthora.watch import NOT_FINITE


def train(
    config: TrainConfig | dict[str, Any] | str | Path,
    *,
    reward: OwnReward | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Train an adapter by DAPO or a variant, and leave a run folder.

    The folder holds ``config.toml``, ``environment.json``, ``problems.json`` (what is trained on),
    ``metrics.jsonl``, ``checkpoints/``, ``adapter/`` (plain PEFT: rank r, or 2r for anchored
    methods; for ``full`` and ``safe-mask`` ``model/``, the whole model) and ``result.json``. It is
    created only after the config, model and data have been read without error. Under torchrun every
    process calls this with the same config; the first one writes.

    Args:
        config: a `TrainConfig`, a dict of its fields, a TOML file, or a preset's name.
        reward: own reward (response, gold answer) -> score, in place of the verifier; or its name,
            as in the config.
        resume: go on with the run in ``config.out`` from its last complete checkpoint; where there
            is none yet, from the start. On one kind of machine, with the same number of threads and
            processes, the result is that of a run that was never interrupted, bit for bit.
        progress: show live progress on stderr.

    Returns:
        How the run ended, as in ``result.json``.

    Raises:
        ValueError: a bad config, model or data; an output folder that holds another run; a reward
            or loss that is not finite, a sandbox that fails, or no group with a signal for too long
            (the folder then keeps the metrics, the last checkpoint, and says why).
        ConnectionError: if another process of the run died or failed.
    """
    config = build(TrainConfig, config)
    if not (resume and (Path(config.out) / "config.toml").is_file()):
        check_start(config)
    most = max(64, 2 * (os.cpu_count() or 1))  # beyond, thread pools crawl or refuse
    if config.threads > most:
        raise ValueError(f"threads {config.threads} is too many here; at most {most}, or 0")
    device = models.pick_device(config.device)
    world = join(device, config.processes)
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    probes: list[dict[str, Any]] = []
    with world.together():
        if world.main:
            store.check_writable(out)
            if not resume:
                _refuse_used(out)
        config, probes = matched(config, world, out, resume=resume, reward=reward)
        if world.main and resume:
            _check_resume(config, out)
    parts = load_parts(config, reward, device)
    checkpoint = None
    with world.together():
        if world.main:
            checkpoint = _open_folder(config, parts, out, resume)
            if probes:
                store.write_json(out / "probe.json", probes)
    checkpoint = world.from_main((checkpoint,))[0]
    rows = store.read_metrics(out / "metrics.jsonl") if checkpoint else []
    started = time.perf_counter()
    with terminable("go on with --resume") as settle:
        try:
            parts = _run(config, parts, world, out, rows, checkpoint, progress, reward)
            ending = _finish(config, parts, world, out)
        except BaseException as error:
            settle()
            if world.main:
                seconds = time.perf_counter() - started
                write_result(out, failure_of(config, parts, rows, error, seconds))
            raise
    seconds = sum(row.get("seconds") or 0.0 for row in rows)
    result = result_of(config, parts, rows, "finished", None, seconds, ending)
    with world.together():  # a launcher may end all processes once one has ended
        if world.main:
            write_result(out, result)
    return result


def _refuse_used(out: Path) -> None:
    """A new run needs a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} already holds a run or other files; choose another out, resume it "
            "(--resume), or remove it"
        )


def _check_resume(config: TrainConfig, out: Path) -> None:
    """What is in ``out`` is an unfinished run with the same config, or nothing.

    Raises:
        ValueError: if it is something else, finished, or its config differs, naming the keys.
    """
    if not (out / "config.toml").is_file():
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(f"{out} has no config.toml to resume by; choose another out")
        return
    result = out / "result.json"
    if result.is_file() and _status(result) == "finished":
        raise ValueError(
            f"{out} is finished; score it with orthora eval, or choose another out for a new run"
        )
    before = build(TrainConfig, read_toml(out / "config.toml"))
    checkpoints.check_same_config(out, before.model_dump(mode="json"), config)


def _status(result: Path) -> str:
    """How the run ended, by its result.json.

    Raises:
        ValueError: if the file can't be read.
    """
    try:
        return json.loads(result.read_text(encoding="utf-8"))["status"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{result} can't be read ({error}); delete it to resume") from error


def _open_folder(config: TrainConfig, parts: Parts, out: Path, resume: bool) -> Path | None:
    """Write what describes the run; the checkpoint to go on from, to which metrics are cut back."""
    checkpoint = last_good(out) if resume else None
    store.write_atomic(out / "config.toml", to_toml(config))  # first: a kill leaves what resumes
    metrics = out / "metrics.jsonl"
    if checkpoint is None:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        store.write_atomic(metrics, "")
    else:
        checkpoints.remove_incomplete(out / "checkpoints")
        cut_metrics(metrics, checkpoints.step_of(checkpoint))
    for rest in ("adapter", "model"):  # of a run that was killed after its last step
        shutil.rmtree(out / rest, ignore_errors=True)
    (out / "result.json").unlink(missing_ok=True)
    story = {"base_fingerprint": base_fingerprint(config.model)}
    story |= store.environment(torch.get_num_threads())
    store.write_json(out / "environment.json", story)
    if checkpoint is None:
        store.write_json(out / "problems.json", problems_record(config, parts))
    return checkpoint


def _run(
    config: TrainConfig,
    parts: Parts,
    world: World,
    out: Path,
    rows: list[Metrics],
    checkpoint: Path | None,
    progress: bool,
    reward: OwnReward | str | None,
) -> Parts:
    """Train, appending each step's row to ``rows`` and to the metrics log; what was trained.

    After a rollback the model is built anew, as a resumed run's is.
    """
    watchdog = Watchdog(config, world, out)
    title = f"{config.method} lr {config.learning_rate:g}"
    with StepProgress(title, config.steps, shown=progress and world.main) as bar:

        def on_step(row: Metrics) -> None:
            row = _as_kept(row)
            rows.append(row)
            if world.main:
                store.append_metrics(out / "metrics.jsonl", row)
                bar.update(row)
            watchdog.check(rows)

        while True:
            try:
                _train(config, parts, world, out, checkpoint, on_step, watchdog.lr_scale)
                return parts
            except RollBack as back:
                alarm = back.alarm
            except NotFinite as error:
                alarm = watchdog.broken(error, len(rows) + 1)
            checkpoint = watchdog.roll_back(alarm, rows)
            parts = load_parts(config, reward, parts.model.device.type)


def _as_kept(row: Metrics) -> Metrics:
    """A row as the metrics log has it, so that a resumed run sees what this one does."""
    lost = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    return store.finite(row) | ({NOT_FINITE: lost} if lost else {})


def _train(
    config: TrainConfig,
    parts: Parts,
    world: World,
    out: Path,
    checkpoint: Path | None,
    on_step: Callable[[Metrics], None],
    lr_scale: float,
) -> None:
    """To the last step, from a checkpoint or the start."""
    trainer = RLVRTrainer(config, parts, world, out / "checkpoints", on_step, lr_scale)
    trainer.remove_callback(PrinterCallback)  # the bar and the log say more
    if checkpoint and checkpoints.step_of(checkpoint) >= config.steps:
        trainer._load_from_checkpoint(str(checkpoint))
        return
    if checkpoint:
        checkpoints.restore_position(trainer, checkpoint)
    with world.clear_errors():  # gradients are summed over processes outside our own calls
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _finish(config: TrainConfig, parts: Parts, world: World, out: Path) -> Ending:
    """Write what was trained, and score it; the first process works, the others wait."""
    found: Ending | None = None
    with gathered(parts.model), world.together():
        if world.main:
            if compose(config.method).export == "merged":
                write_merged(parts.model, out / "model")
                parts.tokenizer.save_pretrained(str(out / "model"))
            else:
                export_plain(parts.model, out / "adapter")
            fidelity = merge_fidelity(parts.model) if has_products(parts.model) else None
            found = Ending(*_evaluate(config, parts), fidelity)
    return world.from_main(found)


def _evaluate(config: TrainConfig, parts: Parts) -> tuple[EvalResult | None, EvalResult | None]:
    """Held-out scores after training, and of the base if asked for."""
    if not parts.held_out:
        return None, None
    how = Sampling(max_tokens=config.max_response_tokens, batch=config.rollout_batch)

    def scored() -> EvalResult:
        try:
            return score(
                parts.model,
                parts.tokenizer,
                parts.held_out,
                how,
                config.eval_samples,
                rule=config.reward_rule,
                plain=config.plain_prompts,
            )
        except SandboxError as error:
            raise unjudged(" when held-out programs were scored") from error

    with folded(parts.model) if folds_exactly(parts.model) else nullcontext():
        trained = scored()
    if not config.eval_base:
        return trained, None
    with base_policy(parts.model):
        return trained, scored()
