"""More than one process: the same numbers, one writer, clean ends, and launchers' traps."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import orthora
from orthora.config import read_toml
from orthora.train.world import World, check_engine, join

pytestmark = pytest.mark.xdist_group("torchrun")  # one worker makes the runs that all look at

SETTINGS = {
    "prompts_per_step": 6,
    "group_size": 3,
    "mini_batch_prompts": 3,  # 9 rows: an odd number for two processes
    "micro_batch": 2,
    "rank": 2,
    "max_response_tokens": 24,
    "steps": 3,
    "eval_problems": 8,
    "threads": 1,
    "save_every": 1,
    "dynamic_sampling": True,
    "method": "pissa",
    "beta": 0.05,
}


def flags(settings: dict) -> list[str]:
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        words += [f"--{name if value is not False else 'no-' + name}"]
        words += [] if isinstance(value, bool) else [str(value)]
    return words


def torchrun(
    out: Path, *more: str, processes: int = 2, env=None, program=("-m", "orthora"), **changes
):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", str(processes), *program, "train"]
    command += ["--config", "tiny", "--out", str(out), *flags(SETTINGS | changes), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (env or {})
    environment["PYTHONFAULTHANDLER"] = "1"  # an abort says where
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values_of(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in rows_of(folder)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    config = read_toml("tiny") | SETTINGS | {"out": str(out)}
    return out, orthora.train(config, progress=False)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(out, "--processes", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done


def test_two_processes_give_the_losses_and_everything_else_of_one(one, two):
    """Up to rounding: sums are formed in another order."""
    for single, double in zip(rows_of(one[0]), rows_of(two[0]), strict=True):
        assert single.keys() == double.keys()
        for key, value in single.items():
            if key.startswith("seconds"):
                continue
            if key == "sampling_gap":
                assert double[key] < 1e-4
            else:
                assert double[key] == pytest.approx(value, rel=2e-3, abs=2e-6), key
    # before anything could grow, to far more digits
    first, other = rows_of(one[0])[0], rows_of(two[0])[0]
    for key in ("reward", "pass_rate", "length", "groups_drawn", "draws", "loss"):
        assert other[key] == pytest.approx(first[key], rel=1e-5, abs=1e-8), key


def test_the_adapters_agree(one, two):
    a, b = (load_file(out[0] / "adapter" / "adapter_model.safetensors") for out in (one, two))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-4)


def test_one_process_writes_and_speaks(two):
    out, done = two
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3]
    assert done.stdout.count("steps in") == 1
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["evaluation"]["problems"] == 8


@pytest.mark.slow
def test_a_second_run_on_two_processes_is_bit_equal(two, tmp_path):
    assert torchrun(tmp_path / "run", "--processes", "2").returncode == 0
    assert values_of(tmp_path / "run") == values_of(two[0])


BOMB = """
import os, signal
from pathlib import Path

def reward(response, answer):
    if os.environ.get("BOMB") == os.environ.get("RANK"):  # after the first step
        if list(Path(os.environ["OUT"]).glob("checkpoints/*/orthora_checkpoint.json")):
            {act}
    return float(len(response))
"""


@pytest.mark.slow
def test_when_a_process_dies_the_others_end_and_the_run_resumes_bit_equal(tmp_path):
    path = tmp_path / "bomb.py"
    path.write_text(BOMB.format(act="os.kill(os.getpid(), signal.SIGKILL)"))
    own = {"reward": f"{path}:reward", "eval_problems": 0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert torchrun(whole, **own).returncode == 0
    started = time.monotonic()
    died = torchrun(broken, env={"BOMB": "1", "OUT": str(broken)}, **own)
    assert died.returncode != 0
    assert time.monotonic() - started < 120
    assert not (broken / "adapter").exists()
    assert 1 <= len(rows_of(broken)) < 3
    assert "--resume" in json.loads((broken / "result.json").read_text())["reason"]
    resumed = torchrun(broken, "--resume", **own)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert values_of(broken) == values_of(whole)


BOMB_IN_BACKWARD = """
import os, signal, sys, time, torch
sys.argv = ["orthora", *sys.argv[1:]]
from orthora.train.trainer import RLVRTrainer

real = RLVRTrainer.compute_loss

def bombed(self, *args, **kwargs):
    loss = real(self, *args, **kwargs)
    if self.state.global_step == 3:
        if os.environ["RANK"] == "1":
            {act}
        else:
            {meanwhile}
    return loss

RLVRTrainer.compute_loss = bombed
from orthora.cli import main
from orthora.train import rlvr

write = rlvr.write_result

def write_result(*args):
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun's comes here at times
    write(*args)

rlvr.write_result = write_result
sys.exit(main())
"""


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("act", "meanwhile", "reason"),
    [
        # The backend and torchrun both see it; the first of them ends us.
        (KILL, "pass", "another process (of the run )?is gone.*--resume"),
        pytest.param(
            KILL,
            "time.sleep(60)",
            r"terminated \(SIGTERM.*another process is gone.*--resume",
            marks=pytest.mark.slow,
        ),
        (
            "loss = loss * torch.nan",
            "pass",
            "the loss or its gradient is not finite after 3 updates",
        ),
    ],
    ids=["killed", "killed unnoticed", "nan"],
)
def test_what_goes_wrong_inside_an_update_is_one_line_too(act, meanwhile, reason, tmp_path):
    """Gradients are summed over processes outside our own calls."""
    script, out = tmp_path / "bombed.py", tmp_path / "run"
    script.write_text(BOMB_IN_BACKWARD.format(act=act, meanwhile=meanwhile))
    done = torchrun(out, program=(str(script),), eval_problems=0)
    assert done.returncode != 0
    assert re.search(reason, json.loads((out / "result.json").read_text())["reason"])
    lines = [line for line in done.stderr.splitlines() if line.startswith("orthora train:")]
    assert any(re.search(reason, line) for line in lines), done.stderr[-3000:]
    assert "orthora/train" not in done.stderr  # no traceback of ours


def test_an_error_in_one_process_is_one_line_and_ends_all(tmp_path):
    path = tmp_path / "bomb.py"
    path.write_text(BOMB.format(act='return float("nan")'))
    out = tmp_path / "run"
    bomb = {"BOMB": "1", "OUT": str(out)}
    done = torchrun(out, env=bomb, reward=f"{path}:reward", eval_problems=0)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("orthora train:")]
    assert any("the reward returned nan" in line for line in lines)
    assert "orthora/train" not in done.stderr  # the one traceback is torchrun's own
    assert len(rows_of(out)) >= 1
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "failed"
    assert "process 1 failed" in result["reason"]


def test_fewer_processes_than_asked_for_are_refused(tmp_path):
    config = read_toml("tiny") | SETTINGS | {"out": str(tmp_path / "run"), "processes": 2}
    with pytest.raises(ValueError, match=r"asks for 2 processes, and this run has 1.*torchrun"):
        orthora.train(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_accelerate_launch_on_cpus_is_refused(monkeypatch):
    """It sets an address for several processes, starts one, and says nothing."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert join("cpu", 0) == World()  # one process asked for: no address
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="started one"):
        join("cpu", 0)


@pytest.mark.slow
def test_accelerate_launch_itself(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "orthora", "train", "--config", "tiny", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "was asked for several processes and started one" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_an_engine_that_would_silently_be_plain_ddp_is_refused(name, monkeypatch):
    plain = SimpleNamespace(distributed_type="DistributedType.MULTI_CPU")
    check_engine(plain)
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"asked for {name}, and the run would be MULTI_CPU"):
        check_engine(plain)
    check_engine(SimpleNamespace(distributed_type=f"DistributedType.{name}"))


def test_a_world_of_one_needs_no_backend():
    world = World()
    assert world.main
    assert world.gather("x") == ["x"]
    assert world.from_main(3) == 3
    with pytest.raises(ZeroDivisionError), world.together():
        _ = 1 / 0
