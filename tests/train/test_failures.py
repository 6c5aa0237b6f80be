"""Ends that training itself leads to: told apart, kept, and the same after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

import orthora
from orthora import store
from orthora.config import read_toml
from orthora.failures import NoSignal, NotFinite, TrainingFailed
from orthora.train.checkpoints import latest, step_of
from orthora.trained import damage

SMALL: dict[str, Any] = {
    "steps": 6, "prompts_per_step": 2, "mini_batch_prompts": 1, "group_size": 2,
    "max_response_tokens": 8, "dynamic_sampling": False, "eval_problems": 0, "threads": 1,
    "kl_update_share": 0, "watch": [],
}  # fmt: skip


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return read_toml("tiny") | SMALL | {"out": str(folder / "run")} | changes


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "result.json").read_text())


@pytest.mark.parametrize("save_every", [0, 1, 2])
def test_a_run_without_a_signal_ends_in_the_same_way_after_a_kill(tmp_path, save_every):
    reward = tmp_path / "flat.py"
    reward.write_text("def flat(response, answer):\n    return 0.0\n")
    config = settings(tmp_path, reward=f"{reward}:flat", patience=3, save_every=save_every)
    with pytest.raises(NoSignal, match="for 3 steps"):
        orthora.train(config, progress=False)
    first = result_of(tmp_path)
    assert (first["status"], first["ended_by_training"], first["steps"]) == ("failed", True, 2)
    checkpoint = latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert damage(checkpoint) is None
    assert step_of(checkpoint) == 2
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (tmp_path / "run" / "result.json").unlink()  # killed before it was written
    with pytest.raises(NoSignal, match="for 3 steps"):
        orthora.train(config, progress=False, resume=True)
    again = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in again] == [row["step"] for row in rows] == [1, 2]
    assert (result_of(tmp_path)["steps"], result_of(tmp_path)["ended_by_training"]) == (2, True)


def test_a_loss_that_is_not_finite_is_an_end_by_training(tmp_path):
    config = settings(tmp_path, learning_rate=1e30, steps=4)
    with pytest.raises(NotFinite, match="not finite"):
        orthora.train(config, progress=False)
    assert result_of(tmp_path)["ended_by_training"] is True
    assert issubclass(NotFinite, TrainingFailed)
    assert issubclass(TrainingFailed, ValueError)


def test_a_mistake_in_the_settings_is_none(tmp_path):
    reward = tmp_path / "broken.py"
    reward.write_text("def broken(response, answer):\n    return 'one'\n")
    with pytest.raises(ValueError, match="returned"):
        orthora.train(settings(tmp_path, reward=f"{reward}:broken"), progress=False)
    assert result_of(tmp_path)["ended_by_training"] is False


def test_a_run_that_was_killed_while_its_folder_was_made_can_be_resumed(tmp_path, monkeypatch):
    config = settings(tmp_path, steps=1)
    real, written, allowed = store.write_atomic, [], []

    def killed(path, text):
        if len(written) == allowed[-1]:
            raise KeyboardInterrupt
        written.append(path)
        return real(path, text)

    for place in range(4):
        written.clear()
        allowed.append(place)
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_atomic", killed)
            with pytest.raises(KeyboardInterrupt):
                orthora.train(config, progress=False, resume=True)
    (tmp_path / "run" / ".config.toml.torn").write_text("half")
    assert orthora.train(config, progress=False, resume=True).status == "finished"
