"""Resume: bit-equal to the unbroken run, after kills at any moment and for every method."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import few_compositions, kinds_of_composition, save_model
from safetensors.torch import load_file

import orthora
from orthora.config import read_toml
from orthora.train import checkpoints
from orthora.train.trainer import RLVRTrainer

SMALL = {
    "prompts_per_step": 4,
    "dynamic_sampling": False,
    "group_size": 4,
    "mini_batch_prompts": 2,
    "micro_batch": 8,
    "rank": 2,
    "max_response_tokens": 24,
    "eval_problems": 0,
    "threads": 1,
    "save_every": 1,
}


def settings(out: Path, **changes):
    return read_toml("tiny") | SMALL | {"out": str(out)} | changes


def values_of(folder: Path) -> list[dict]:
    """Metrics without the times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in lines
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter/adapter_model.safetensors"
    return load_file(folder / (name if (folder / name).is_file() else "model/model.safetensors"))


def same(a: Path, b: Path) -> bool:
    one, two = weights_of(a), weights_of(b)
    return values_of(a) == values_of(b) and one.keys() == two.keys() and all(
        torch.equal(one[key], two[key]) for key in one
    )  # fmt: skip


def cut(folder: Path, step: int) -> None:
    """What a kill after ``step`` leaves behind: rows too many, no result."""
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if checkpoints.step_of(path) > step:
            shutil.rmtree(path)
    for name in ("adapter", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "result.json").unlink()


def broken_and_whole(tmp_path: Path, step: int, **changes) -> tuple[Path, Path]:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = settings(whole, keep_checkpoints=9, **changes)
    orthora.train(config, progress=False)
    shutil.copytree(whole, broken)
    cut(broken, step)
    orthora.train(config | {"out": str(broken)}, resume=True, progress=False)
    return whole, broken


@pytest.mark.parametrize("method", few_compositions())
def test_every_method_resumes_bit_equal(method, tmp_path):
    """AdaLoRA is cut in the middle of its pruning, between two allocations."""
    whole, broken = broken_and_whole(tmp_path, 2, method=method, steps=4)
    assert len(values_of(whole)) == 4
    assert same(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({*kinds_of_composition()} - {*few_compositions()}))
def test_every_other_kind_of_composition_resumes_bit_equal(method, tmp_path):
    assert same(*broken_and_whole(tmp_path, 1, method=method, steps=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3},
        {"keep_surplus": True, "dynamic_sampling": True, "seed": 1},
        {"beta": 0.1, "update_epochs": 2},
        pytest.param(
            {"schedule": "cosine", "warmup_steps": 2, "min_lr_ratio": 0.1}, marks=pytest.mark.slow
        ),
        pytest.param({"old_logps": "recomputed", "entropy_bonus": 0.01}, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow),
        {"schedule": "adaptive-kl", "learning_rate": 5e-3, "kl_undo": 4.0},
        {"train_problems": 10},  # the cut falls inside the second epoch
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_kind_of_state_is_kept(changes, tmp_path):
    """Random states, the surplus of dynamic sampling, schedule, place in the prompt stream."""
    whole, broken = broken_and_whole(tmp_path, 3, method="pissa", steps=5, **changes)
    assert same(whole, broken)
    if changes.get("schedule") == "adaptive-kl":  # a step was taken back before the cut
        rows = values_of(whole)
        assert any(row["undone"] for row in rows[:3])
        assert len({row["lr"] for row in rows}) > 2
    if changes.get("keep_surplus"):
        sizes = {
            checkpoints.step_of(path): len(torch.load(path / "surplus.pt", weights_only=True))
            for path in (whole / "checkpoints").glob("checkpoint-*")
        }
        assert sizes[3] > 0  # there was something to hand on


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["orthora.train.rlvr", "orthora.tasks.arithmetic"])


def work(config: dict) -> None:
    orthora.train(config, resume=True, progress=False)


def killed(config: dict, seconds: float) -> bool:
    """Start or resume a run in a process of its own, and kill it; False if it finished before."""
    process = CONTEXT.Process(target=work, args=(config,))
    process.start()
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rlpo", "geora+dora", "adalora"])
def test_ten_kills_at_random_moments_leave_no_trace(method, tmp_path):
    """Loading, rollouts, updates, saving, export, evaluation: wherever the kill falls."""
    changes = {"method": method, "steps": 10, "eval_problems": 16, "eval_samples": 1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = CONTEXT.Process(target=work, args=(settings(whole, **changes),))
    started = time.monotonic()
    process.start()
    process.join()
    longest = time.monotonic() - started
    assert process.exitcode == 0
    draw = random.Random(method)
    kills, config = 0, settings(broken, **changes)
    for _ in range(60):
        if kills < 10:
            # most of a process's life is loading: a run must get on between two kills
            kills += killed(config, draw.uniform(0.05, 0.7) * longest)
        if (broken / "result.json").is_file():
            if kills >= 10:
                break
            cut(broken, draw.randrange(10))  # it got through: go on killing it
        elif kills >= 10:
            assert not killed(config, 600)
            break
    assert kills == 10
    assert same(whole, broken)
    results = [json.loads((f / "result.json").read_text()) for f in (whole, broken)]
    assert results[0]["evaluation"] == results[1]["evaluation"] is not None


def test_what_a_kill_left_half_written_is_not_picked_up(tmp_path):
    config = settings(tmp_path / "run", steps=2, method="rlpo")
    orthora.train(config, progress=False)
    folder = tmp_path / "run" / "checkpoints"
    newest = checkpoints.latest(folder)
    assert newest is not None
    assert checkpoints.step_of(newest) == 2
    (newest / checkpoints.MARKER).unlink()
    older = checkpoints.latest(folder)
    assert older is not None
    assert checkpoints.step_of(older) == 1
    expected = values_of(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    orthora.train(config, resume=True, progress=False)
    assert values_of(tmp_path / "run") == expected


def test_old_checkpoints_rotate(tmp_path):
    orthora.train(settings(tmp_path / "run", steps=4, keep_checkpoints=2), progress=False)
    folder = tmp_path / "run" / "checkpoints"
    steps = sorted(checkpoints.step_of(path) for path in folder.glob("checkpoint-*"))
    assert steps == [3, 4]


def test_a_run_that_has_no_checkpoint_yet_starts_anew(tmp_path):
    config = settings(tmp_path / "run", steps=2, save_every=0)
    orthora.train(config, resume=True, progress=False)  # nothing is there
    expected = values_of(tmp_path / "run")
    cut(tmp_path / "run", 0)
    orthora.train(config, resume=True, progress=False)
    assert values_of(tmp_path / "run") == expected


def test_another_config_is_refused_with_the_differing_keys_and_nothing_is_touched(tmp_path):
    config = settings(tmp_path / "run", steps=2)
    orthora.train(config, progress=False)
    cut(tmp_path / "run", 1)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"seed \(42 then, 7 now\), learning_rate \(0.001"):
        orthora.train(config | {"learning_rate": 2e-3, "seed": 7}, resume=True, progress=False)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_finished_run_and_a_folder_of_other_things_are_refused(tmp_path):
    config = settings(tmp_path / "run", steps=1)
    orthora.train(config, progress=False)
    with pytest.raises(ValueError, match="is finished"):
        orthora.train(config, resume=True, progress=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no config.toml to resume by"):
        orthora.train(config | {"out": str(other)}, resume=True, progress=False)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_a_checkpoint_of_another_config_is_refused_whatever_the_folder_says(tmp_path):
    config = settings(tmp_path / "run", steps=2)
    orthora.train(config, progress=False)
    cut(tmp_path / "run", 1)
    recorded = tmp_path / "run" / "config.toml"
    recorded.write_text(recorded.read_text().replace("rank = 2", "rank = 3"))
    with pytest.raises(ValueError, match=r"checkpoint-2 was .* differ: rank \(2 then, 3 now\)"):
        orthora.train(config | {"rank": 3}, resume=True, progress=False)


DAMAGES = {
    "optimizer missing": lambda c: (c / "optimizer.pt").unlink(),
    "scheduler missing": lambda c: (c / "scheduler.pt").unlink(),
    "random state missing": lambda c: (c / "rng_state.pth").unlink(),
    "optimizer cut": lambda c: os.truncate(c / "optimizer.pt", 1000),
    "adapter empty": lambda c: os.truncate(c / "orthora_exact.safetensors", 0),
    "marker empty": lambda c: os.truncate(c / checkpoints.MARKER, 0),
    "surplus missing": lambda c: (c / "surplus.pt").unlink(),
    "state missing": lambda c: (c / "trainer_state.json").unlink(),
}


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    out = tmp_path_factory.mktemp("three") / "run"
    orthora.train(settings(out, steps=3, method="pissa", keep_checkpoints=9), progress=False)
    return out


@pytest.mark.parametrize(
    "how",
    [
        "optimizer cut",
        *(pytest.param(h, marks=pytest.mark.slow) for h in DAMAGES if h != "optimizer cut"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud_and_the_run_is_the_same(
    how, three_steps, tmp_path
):
    """transformers would go on with a fresh optimizer, and say nothing."""
    out = tmp_path / "run"
    shutil.copytree(three_steps, out)
    cut(out, 2)
    newest = checkpoints.latest(out / "checkpoints")
    assert newest is not None
    DAMAGES[how](newest)
    config = settings(out, steps=3, method="pissa", keep_checkpoints=9)
    with pytest.warns(UserWarning, match=r"checkpoint-4 is damaged .*going on from checkpoint-2"):
        orthora.train(config, resume=True, progress=False)
    assert same(out, three_steps)


def test_where_every_checkpoint_is_damaged_nothing_is_started_over_in_silence(
    three_steps, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(three_steps, out)
    cut(out, 2)
    for path in (out / "checkpoints").glob("checkpoint-*"):
        (path / "optimizer.pt").unlink()
    config = settings(out, steps=3, method="pissa", keep_checkpoints=9)
    with pytest.raises(ValueError, match=r"optimizer.pt is missing.*delete it to start"):
        orthora.train(config, resume=True, progress=False)
    assert len(values_of(out)) == 3


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("result.json", "{", r"result.json can't be read"),
        ("metrics.jsonl", None, r"metrics.jsonl has 0 rows.*after step 2"),
        ("config.toml", None, r"no config.toml to resume by"),
    ],
)
def test_a_damaged_folder_is_one_line_with_the_file(file, text, words, three_steps, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(three_steps, out)
    cut(out, 2)
    (out / file).unlink(missing_ok=True)
    if text is not None:
        (out / file).write_text(text)
    config = settings(out, steps=3, method="pissa", keep_checkpoints=9)
    with pytest.raises(ValueError, match=words):
        orthora.train(config, resume=True, progress=False)


def test_changed_data_is_refused_and_other_threads_are_told(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(1, 9)]
    data.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "run"
    config = settings(out, steps=2, task="file", data=str(data), train_problems=1)
    orthora.train(config, progress=False)
    cut(out, 1)
    data.write_text("\n".join(map(json.dumps, [*rows[:-1], rows[-1] | {"answer": "17"}])))
    with pytest.raises(ValueError, match=r"training problems are not those of .*checkpoint"):
        orthora.train(config, resume=True, progress=False)
    data.write_text("\n".join(map(json.dumps, rows)))
    marker = out / "checkpoints" / "checkpoint-2" / checkpoints.MARKER
    told = json.loads(marker.read_text()) | {"processes": 4}
    marker.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match=r"processes \(4 then, 1 now\).*not bit for bit"):
        orthora.train(config, resume=True, progress=False)


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    """The loss is finite, one entry of the gradient is not; clipping would spread it everywhere."""
    out = tmp_path / "run"
    config = settings(out, method="pissa", steps=4, keep_checkpoints=1)
    real, calls = RLVRTrainer.compute_loss, []

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = real(self, model, inputs, *args, **kwargs)
        calls.append(1)
        if len(calls) == 5:  # the second update of the second step... whichever: one micro-batch
            parameter = next(p for p in model.parameters() if p.requires_grad)
            parameter.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), torch.inf))
        return loss

    monkeypatch.setattr(RLVRTrainer, "compute_loss", poisoned)
    with pytest.raises(ValueError, match=r"gradient is not finite after \d+ updates .*lower the"):
        orthora.train(config, progress=False)
    monkeypatch.undo()
    kept = checkpoints.latest(out / "checkpoints")
    assert kept is not None
    tensors = load_file(kept / "orthora_exact.safetensors").values()
    assert all(bool(t.isfinite().all()) for t in tensors)
    result = orthora.train(config, resume=True, progress=False)
    assert (result.status, result.steps) == ("finished", 4)


def test_a_policy_that_breaks_in_the_last_update_is_no_finished_run(tmp_path):
    config = settings(tmp_path / "run", method="pissa", steps=1, learning_rate=1e20)
    with pytest.raises(ValueError, match=r"not finite after"):
        orthora.train(config, progress=False)
    assert not (tmp_path / "run" / "adapter").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"


def test_without_a_signal_what_was_trained_is_kept(tmp_path):
    """Also where checkpoints are off."""
    calls = []

    def reward(response, answer):
        calls.append(1)
        return float(len(response) % 3) if len(calls) < 120 else 1.0

    out = tmp_path / "run"
    config = settings(out, steps=50, dynamic_sampling=True, save_every=0, max_draws=3)
    with pytest.raises(ValueError, match="max_draws"):
        orthora.train(config, reward=reward, progress=False)
    done = len(values_of(out))
    assert done >= 1
    kept = checkpoints.latest(out / "checkpoints")
    assert kept is not None
    assert checkpoints.step_of(kept) == done
    calls.clear()  # the world is kind again
    config_again = settings(out, steps=50, dynamic_sampling=True, save_every=0, max_draws=3)
    with pytest.raises(ValueError, match="max_draws"):
        orthora.train(config_again, reward=reward, resume=True, progress=False)
    assert len(values_of(out)) > done


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """The folder of that name has another model in it now."""
    limits = {"max_prompt_tokens": 64, "max_response_tokens": 8}
    config = settings(tmp_path / "run", steps=2, model=str(tmp_path / "model"), **limits)
    save_model("qwen2", tmp_path / "model")
    orthora.train(config, progress=False)
    cut(tmp_path / "run", 1)
    shutil.rmtree(tmp_path / "model")
    save_model("gpt2", tmp_path / "model")
    with pytest.raises(ValueError, match="does not fit this model"):
        orthora.train(config, resume=True, progress=False)


def test_sigterm_is_an_interrupt_that_the_folder_tells_of(tmp_path):
    config = settings(tmp_path / "run", steps=3)

    def reward(response: str, answer: str) -> float:
        if list((tmp_path / "run").glob(f"checkpoints/*/{checkpoints.MARKER}")):
            os.kill(os.getpid(), signal.SIGTERM)
        return float(len(response))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        orthora.train(config, reward=reward, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 1)
    assert "SIGTERM" in result["reason"]
    assert "--resume" in result["reason"]
    orthora.train(config, reward=lambda response, answer: 0.0, resume=True, progress=False)
    assert [row["step"] for row in values_of(tmp_path / "run")] == [1, 2, 3]


def test_a_run_that_fails_keeps_its_metrics_and_last_checkpoint(tmp_path):
    calls = 0

    def reward(response: str, answer: str) -> float:
        nonlocal calls
        calls += 1
        return float("nan") if calls > 40 else float(len(response))

    config = settings(tmp_path / "run", steps=4)
    with pytest.raises(ValueError, match="the reward returned nan"):
        orthora.train(config, reward=reward, progress=False)
    assert len(values_of(tmp_path / "run")) == 2
    newest = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert checkpoints.step_of(newest) == 2
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["steps"] == 2


def test_a_setting_that_came_later_counts_as_what_it_is_by_default():
    config = orthora.TrainConfig(**settings(Path("x")))
    before = config.model_dump(mode="json")
    del before["drop"], before["kl_undo"]
    checkpoints.check_same_config(Path("x"), before, config)
    changed = config.model_copy(update={"kl_undo": 3.0})
    with pytest.raises(ValueError, match=r"kl_undo \(10.0 then, 3.0 now\)"):
        checkpoints.check_same_config(Path("x"), before, changed)
