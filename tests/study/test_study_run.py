"""Studies run: once, whatever happens on the way, and to the same bits."""

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from driven import (
    GRID,
    SETTINGS,
    cell_processes,
    kill,
    results,
    run,
    start,
    wait_for,
    write_study,
)
from safetensors.torch import load_file

import orthora
from orthora.cli import main
from orthora.study import child, load_study, plan
from orthora.study.job import Job
from orthora.study.report import report_study
from orthora.study.results import load_results

pytestmark = pytest.mark.xdist_group("study")


def stamps(folder: Path) -> dict[str, int]:
    files = [*folder.glob("runs/*/result.json"), *folder.glob("runs/*/eval-*/scores.json")]
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def test_every_cell_is_trained_evaluated_and_kept(small_study):
    file, table = small_study
    cells = plan(load_study(file))
    assert len(table.splitlines()) == 2 + len(cells) == 6
    for cell in cells:
        ending = json.loads((file.parent / "out/cells" / cell.name / "cell.json").read_text())
        assert (ending["state"], ending["reason"], ending["scored_step"]) == ("finished", None, 3)
    assert (file.parent / "out/report/report.html").stat().st_size > 10_000


def test_what_is_finished_is_not_touched_again_and_new_cells_are_done(small_study, tmp_path):
    file, _ = small_study
    folder = file.parent / "out"
    before = stamps(folder)
    grown = write_study(file.parent, grid=GRID.replace("seed = [0]", "seed = [0, 1]"))
    run("run", grown, "--limit", "1")
    after = stamps(folder)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2  # a run and its evaluation
    write_study(file.parent)


def test_a_cell_is_the_run_that_the_train_and_eval_commands_make(small_study, tmp_path):
    file, _ = small_study
    spec = load_study(file)
    cell = next(cell for cell in plan(spec) if cell.method == "pissa")
    there = spec.folder / "runs" / cell.name
    config = cell.config(spec.folder).model_copy(update={"out": str(tmp_path / "run")})
    threads = torch.get_num_threads()
    try:
        orthora.train(config, progress=False)
    finally:
        torch.set_num_threads(threads)
    mine, theirs = (load_file(p / "adapter/adapter_model.safetensors")
                    for p in (tmp_path / "run", there))  # fmt: skip
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    settings = {"task": "arithmetic", "problems": 8, "samples": 2, "max_response_tokens": 16}
    found = orthora.evaluate(settings | {"adapter": str(tmp_path / "run")})
    kept = json.loads(next(there.glob("eval-test-*/scores.json")).read_text())
    assert found.pass_at_1 == kept["pass_at_1"]


def test_checkpoints_go_when_a_cell_has_finished(small_study):
    assert not [*(small_study[0].parent / "out").glob("runs/*/checkpoints")]


def test_a_killed_worker_is_replaced_and_goes_on_to_the_same_bits(small_study, tmp_path):
    file = write_study(tmp_path)
    driver = start("run", file, "--jobs", "1")
    folder = tmp_path / "out"
    wait_for(lambda: [*folder.glob("runs/*/checkpoints/checkpoint-*/orthora_checkpoint.json")])
    for process in cell_processes(driver.pid):
        kill(process.pid)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    assert "lost: its process was ended by SIGKILL" in out
    assert results(file) == small_study[1]


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_the_command_goes_on(small_study, tmp_path):
    file = write_study(tmp_path)
    driver = start("run", file, "--jobs", "2")
    folder = tmp_path / "out"
    wait_for(lambda: [*folder.glob("runs/*/metrics.jsonl")])
    workers = cell_processes(driver.pid)
    assert workers
    kill(driver.pid)
    driver.wait()
    psutil.wait_procs(workers, timeout=20)
    assert not [one for one in workers if one.is_running() and one.status() != "zombie"]
    run("run", file, "--jobs", "1")
    assert results(file) == small_study[1]


@pytest.mark.slow
def test_an_interrupted_driver_says_how_to_go_on(tmp_path):
    file = write_study(tmp_path)
    driver = start("run", file, "--jobs", "1")
    wait_for(lambda: [*(tmp_path / "out").glob("runs/*/metrics.jsonl")])
    workers = cell_processes(driver.pid)
    driver.send_signal(signal.SIGTERM)  # SIGINT may be ignored, in the background
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command goes on" in out
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_failed_cell_is_kept_with_its_reason_and_the_others_go_on(tmp_path):
    grid = GRID.replace('["lora", "pissa"]', '["lora"]').replace("[1e-3, 3e-3]", "[1e-3]")
    file = write_study(
        tmp_path, grid=f"{grid}rank = [8, 4096]\n\n[[grid]]\nmethod = 'lora'\nseed = [0]\n"
        "learning_rate = [1e30]\nrank = 8\n",
    )  # fmt: skip
    out = run("run", file, code=2)
    assert "1 cells failed, e.g. lora-1e-3-r4096" in out.splitlines()[-1]
    endings = {
        path.parent.name: json.loads(path.read_text())
        for path in (tmp_path / "out").glob("cells/lora*/cell.json")
    }
    by_rank = next(one for name, one in endings.items() if "r4096" in name)
    assert (by_rank["state"], by_rank["by_training"]) == ("failed", False)
    assert "4096" in by_rank["reason"]
    by_rate = next(one for name, one in endings.items() if "1e30" in name)
    assert (by_rate["state"], by_rate["by_training"]) == ("failed", True)
    assert "not finite" in by_rate["reason"]
    rows = results(file).splitlines()
    assert len(rows) == 5
    before = stamps(tmp_path / "out")
    assert "failed: " in run("run", file, code=2)  # nothing is tried again unless that is asked for
    assert stamps(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
        ("time.sleep(1e6)", "it wrote nothing for as long as stalled_after says"),
    ],
)
def test_a_cell_whose_process_dies_or_hangs_each_time_is_given_up(tmp_path, body, says):
    reward = tmp_path / "deadly.py"
    reward.write_text(f"import os, time\ndef die(response, answer):\n    {body}\n")
    settings = f'{SETTINGS}reward = "{reward}:die"\n'
    one = GRID.replace('["lora", "pissa"]', '["lora"]').replace("[1e-3, 3e-3]", "[1e-3]")
    more = "retries = 1\nstalled_after = 0.3"
    file = write_study(tmp_path, grid=one, settings=settings, more=more)
    out = run("run", file, code=2)
    assert out.count(f"lost: {says}") == 2
    assert "2 times; see" in out


@pytest.mark.slow
def test_only_a_cell_that_writes_nothing_is_ended(tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(child.os, "_exit", lambda code: ended.set())
    job = Job("one", str(tmp_path), None, "tiny", {}, False, {})
    job.run.mkdir(parents=True)
    child._end_when_stalled(job, 2.0)
    for number in range(40):
        (job.run / "metrics.jsonl").write_text("x" * number)
        time.sleep(0.1)
    assert not ended.is_set()
    assert ended.wait(30)


@pytest.mark.slow
def test_cells_are_taken_from_another_study_instead_of_being_run(small_study, tmp_path):
    file = write_study(
        tmp_path, name="other", more=f'reuse = ["{small_study[0].parent / "out"}"]'
    )  # fmt: skip
    out = run("run", file)
    assert "4 cells taken from" in out
    assert results(file) == small_study[1]


@pytest.mark.parametrize(
    ("place", "before", "now", "says"),
    [
        ("problems.json", r'"fingerprint": "\w', '"fingerprint": "!', "the training problems"),
        (
            "environment.json",
            r'"base_fingerprint": "\w',
            '"base_fingerprint": "!',
            "the base model's",
        ),
        ("environment.json", r'"torch": "', '"torch": "1.', "the version of torch"),
        ("eval-*/environment.json", r'"problems": "\w', '"problems": "!', "the problems of evalua"),
        ("eval-*/config.toml", r"top_p = 1.0", "top_p = 0.9", "the settings of evaluation 'test'"),
    ],
)
def test_cells_that_were_not_made_alike_are_named(small_study, tmp_path, place, before, now, says):
    file = write_study(tmp_path)
    shutil.copytree(small_study[0].parent / "out", tmp_path / "out")
    spec = load_study(file)
    assert load_results(spec).unlike == []
    cell = plan(spec)[2]
    changed = next((spec.folder / "runs" / cell.name).glob(place))
    text, count = re.subn(before, now, changed.read_text())
    assert count == 1
    changed.write_text(text)
    (line,) = load_results(spec).unlike
    assert says in line
    assert line.startswith("not alike: 1 cell differs from most in ")
    assert line.endswith(f"({cell.name})")
    assert line in report_study(spec, tmp_path / "page").page.read_text().replace("&#x27;", "'")


@pytest.mark.slow
def test_data_that_changed_under_their_name_are_noticed(tmp_path):
    data = tmp_path / "sums.jsonl"
    rows = [json.dumps({"prompt": f"{n}+{n + 1}=", "answer": str(2 * n + 1)}) for n in range(20)]
    data.write_text("\n".join(rows))
    settings = f'{SETTINGS}task = "file"\ndata = "{data}"\n'
    file = write_study(tmp_path, settings=settings)
    assert "not alike" not in run("run", file, "--limit", "2")
    data.write_text("\n".join(rows[1:]))
    out = run("run", file)
    first = plan(load_study(file))[0].name
    assert f"not alike: 1 cell differs from most in the training problems ({first})" in out


@pytest.mark.slow
def test_two_drivers_do_not_work_in_one_folder(tmp_path):
    file = write_study(tmp_path)
    driver = start("run", file, "--jobs", "1")
    try:
        wait_for(lambda: [*(tmp_path / "out").glob("cells/*/log.txt")])
        assert "another process is writing" in run("run", file, code=2)
    finally:
        os.killpg(driver.pid, signal.SIGTERM)
        driver.communicate(timeout=60)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("learning_rate = [1e-3, 3e-3]", "learning_rat = [1e-3]"), "Did you mean 'learning_rate'"),
        (("seed = [0]", "seed = []"), "grid 1 is empty: axis 'seed' has no values"),
        (("seed = [0]", "seed = [0, 0]"), "two cells have one hash: lora-1e-3-r8-s0-"),
        (("seed = [0]", 'seed = [0]\nmodel = "/nowhere/model"'), "cell lora-1e-3"),
        (("seed = [0]", 'seed = [0]\ntask = "arithmetik"'), "arithmetic"),
        (("seed = [0]", "rank = [4]\nseed = [0]\n[[grid]]\nmethod = 'rlpo'\nseed = [0]\n"
          "learning_rate = [1e-3, 3e-3]"), "differ in rank (4 against 8)"),
    ],
)  # fmt: skip
def test_bad_grids_are_one_clear_line_and_nothing_is_begun(tmp_path, capsys, change, says):
    file = write_study(tmp_path, grid=GRID.replace(*change))
    assert main(["study", "run", str(file)]) == 2
    out = capsys.readouterr().err
    assert says in out
    assert len(out.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_study_is_left_alone(small_study, capsys):
    other = write_study(small_study[0].parent, name="another")
    for what in ("run", "report"):
        assert main(["study", what, str(other)]) == 2
        assert "is the folder of study 'small', not of 'another'" in capsys.readouterr().err
    other.unlink()


def test_a_ray_address_that_does_not_answer_is_one_clear_line(tmp_path, capsys):
    pytest.importorskip("ray")
    file = write_study(tmp_path)
    for address, says in (
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
        ("nonsense", "is not HOST:PORT"),
    ):
        assert main(["study", "run", str(file), "--ray", address]) == 2
        out = capsys.readouterr().err
        assert says in out
        assert len(out.strip().splitlines()) == 1


def test_a_dry_run_prints_the_plan_with_its_cost_and_begins_nothing(tmp_path, capsys):
    assert main(["study", "run", str(write_study(tmp_path)), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 cells in" in out
    assert "96 responses" in out  # 4 cells x 3 steps x 2 prompts x 4
    assert "1,536 tokens at most" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sixty_cells_killed_at_random_ten_times_end_with_the_same_table(tmp_path):
    grid = GRID.replace("seed = [0]", f"seed = {[*range(15)]}")
    (tmp_path / "calm").mkdir()
    calm = write_study(tmp_path / "calm", grid=grid)
    assert len(plan(load_study(calm))) == 60
    run("run", calm, "--jobs", "2")
    (tmp_path / "wild").mkdir()
    wild = write_study(tmp_path / "wild", grid=grid)
    dice = random.Random(7)
    kills = 0
    while kills < 10:
        driver = start("run", wild, "--jobs", "2")
        time.sleep(dice.uniform(6, 16))
        assert driver.poll() is None, "it ended before ten kills; give it more cells"
        workers = cell_processes(driver.pid)
        if dice.random() < 0.5 and workers:
            kill(dice.choice(workers).pid)
            kills += 1
            time.sleep(dice.uniform(0, 3))
        kill(driver.pid)
        kills += 1
        driver.communicate()
    run("run", wild, "--jobs", "2")
    assert results(wild) == results(calm)
