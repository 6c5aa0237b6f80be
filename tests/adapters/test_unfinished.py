"""An interrupted `orthora init` goes on where it stopped, and nobody sees half an adapter."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_model, save_squares
from safetensors.torch import load_file, save_file

import orthora
from orthora.adapters import init_adapter, starts, stream, unfinished
from orthora.adapters.slotfile import SlotFile

fcntl = pytest.importorskip("fcntl")

ADAPTER, STATE = "adapter_model.safetensors", "orthora_state.safetensors"
CASES = [("qwen2", "rlpo"), ("qwen2", "pissa"), ("qwen3_moe", "rlmo")]
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def save(kind):
        if kind not in made:
            made[kind] = save_model(kind, tmp_path_factory.mktemp(kind) / "model", torch.bfloat16)
        return made[kind]

    return save


@pytest.fixture(scope="module")
def unbroken(saved, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    made = {}

    def get(kind, method):
        if (kind, method) not in made:
            out = tmp_path_factory.mktemp("unbroken") / "out"
            made[kind, method] = init(saved(kind), method, out=out).out
        return made[kind, method]

    return get


@pytest.fixture
def computed(monkeypatch):
    """Names of the weights that were computed."""
    names, compute = [], starts.compute
    monkeypatch.setattr(
        starts, "compute", lambda W, name, *a: names.append(name) or compute(W, name, *a)
    )
    return names


def init(model, method="rlpo", *, out, **options):
    options = {"rank": 4, "alpha": 6.0, "seed": 3, "workers": 1} | options
    return init_adapter(str(model), method, out=out, **options)


def hidden(out):
    return out.parent / f".{out.name}.unfinished"


def stop_after(count, error=KeyboardInterrupt):
    """A report that stops the run when so many weights are done."""

    def report(now):
        if now.done == count:
            raise error

    return report


def interrupt(model, method="rlpo", *, out, count, error=KeyboardInterrupt, **options):
    with pytest.raises(error):
        init(model, method, out=out, report=stop_after(count, error), **options)
    assert not out.exists()


def assert_same_files(out, expected):
    """Byte by byte, but for the seconds in the record."""
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        if path.name != "orthora.json":
            assert (out / path.name).read_bytes() == path.read_bytes()
    ours, theirs = (
        re.sub(r'"seconds": [\d.e-]+', "", (folder / "orthora.json").read_text())
        for folder in (out, expected)
    )
    assert ours == theirs
    assert [path.name for path in out.parent.iterdir()] == [out.name]


# Interruptions


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_run_interrupted_after_any_weight_goes_on_and_ends_the_same(
    kind, method, workers, saved, unbroken, tmp_path, computed
):
    expected = unbroken(kind, method)
    names = list(json.loads((expected / "orthora.json").read_text())["modules"])
    for count in range(1, len(names) + 1, workers):
        out = tmp_path / f"{count}" / "out"
        interrupt(saved(kind), method, out=out, count=count, workers=workers)
        journal = (hidden(out) / "journal.jsonl").read_text().splitlines()
        done = [json.loads(line)["name"] for line in journal]
        assert len(done) == count
        computed.clear()
        seen = []
        result = init(saved(kind), method, out=out, report=seen.append, workers=workers)
        assert result.resumed == count
        assert sorted(computed) == sorted(set(names) - set(done))
        assert (seen[0].done, seen[-1].done, seen[-1].total) == (count, len(names), len(names))
        assert 0 < seen[0].work_done <= seen[-1].work_done == seen[-1].work
        assert list(result.modules) == names
        assert_same_files(out, expected)


def test_a_run_interrupted_before_the_first_weight_leaves_nothing(saved, unbroken, tmp_path):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=0)
    assert list(tmp_path.iterdir()) == []
    init(saved("qwen2"), out=tmp_path / "out")
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


def test_many_interruptions_are_no_worse_than_one(saved, unbroken, tmp_path):
    for count in (1, 4, 5, 11, 14):
        interrupt(saved("qwen2"), "pissa", out=tmp_path / "out", count=count)
    assert init(saved("qwen2"), "pissa", out=tmp_path / "out").resumed == 14
    assert_same_files(tmp_path / "out", unbroken("qwen2", "pissa"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("call", range(3, 20, 4))
def test_a_weight_interrupted_between_its_tensors_is_made_again(
    call, error, saved, unbroken, tmp_path, monkeypatch
):
    calls, write = [], SlotFile.write

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        write(self, *arguments)

    monkeypatch.setattr(SlotFile, "write", stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        init(saved("qwen2"), "pissa", out=tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    done = (call - 1) // 6  # two tensors of the adapter, four of the state
    assert hidden(tmp_path / "out").exists() == (done > 0)
    assert init(saved("qwen2"), "pissa", out=tmp_path / "out").resumed == done
    assert_same_files(tmp_path / "out", unbroken("qwen2", "pissa"))


@pytest.mark.parametrize(("cut", "left"), [("{", 6), ('{"name": "model.lay', 6), (-1, 5), (-30, 5)])
def test_a_torn_last_line_of_the_journal_is_dropped(cut, left, saved, unbroken, tmp_path, computed):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=6)
    journal = hidden(tmp_path / "out") / "journal.jsonl"
    text = journal.read_text()
    journal.write_text(text + cut if isinstance(cut, str) else text[:cut])
    computed.clear()
    assert init(saved("qwen2"), out=tmp_path / "out").resumed == left
    assert len(computed) == 14 - left
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


def test_the_journal_never_vouches_for_what_is_not_on_the_disk(saved, tmp_path, monkeypatch):
    """Data are synchronised before the lines that say so."""
    order = []
    flush, fsync = SlotFile.flush, os.fsync
    monkeypatch.setattr(SlotFile, "flush", lambda self: order.append("data") or flush(self))
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("sync") or fsync(handle))
    monkeypatch.setattr(unfinished, "_FLUSH_SECONDS", -1.0)
    lines = []

    def look(now):
        order.clear()
        journal = hidden(tmp_path / "out") / "journal.jsonl"
        lines.append(len(journal.read_text().splitlines()))
        assert lines[-1] == now.done

    init(saved("qwen2"), "pissa", out=tmp_path / "out", report=look)
    assert lines == list(range(15))
    assert order[:5] == ["data", "sync", "data", "sync", "sync"]  # two files, then the journal


def test_a_journal_that_was_not_flushed_yet_costs_time_and_nothing_else(
    saved, unbroken, tmp_path, monkeypatch
):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=9)
    (hidden(tmp_path / "out") / "journal.jsonl").unlink()
    assert init(saved("qwen2"), out=tmp_path / "out").resumed == 0
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from orthora.adapters import init_adapter, unfinished

model, out, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
unfinished._FLUSH_SECONDS = 0.02
finish = unfinished.Unfinished.finish
unfinished.Unfinished.finish = lambda *a: time.sleep(0.03) or finish(*a)  # on fast machines too
hidden = out.parent / f".{out.name}.unfinished"
delays = random.Random(seed)

def init(out):
    init_adapter(model, "pissa", out=out, rank=4, workers=2,
                 target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])

kills, refused = 0, ""
while True:
    child = os.fork()
    if child == 0:
        init(out)
        os._exit(0)
    if kills < 4:
        time.sleep(delays.uniform(0.02, 0.25))
        if kills == 2:
            while not (hidden / "plan.json").exists():
                time.sleep(0.01)
            try:
                init(out)
            except ValueError as error:
                refused = str(error)
        os.kill(child, signal.SIGKILL)
        kills += 1
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert status == 0
        break
    assert not out.exists(), "half an adapter has the name of a whole one"
print(kills)
print(refused)
"""


def test_runs_killed_at_random_moments_end_the_same(tmp_path):
    model = save_squares(tmp_path / "model", layers=12, side=384)
    out = tmp_path / "killed" / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(model), str(out), "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    kills, refused = done.stdout.splitlines()
    assert int(kills) == 4
    assert "another process is writing" in refused
    expected = tmp_path / "unbroken" / "out"
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    init_adapter(str(model), "pissa", out=expected, rank=4, workers=2, target_modules=targets)
    assert_same_files(out, expected)


# Remains of another run


@pytest.mark.parametrize(
    ("change", "then", "now"),
    [
        ({"method": "rlmo"}, "'rlpo'", "'rlmo'"),
        ({"rank": 5}, "4", "5"),
        ({"alpha": 7.0}, "6.0", "7.0"),
        ({"target_modules": ["q_proj"]}, "['q_proj', 'v_proj']", "['q_proj']"),
        ({"target_modules": r".*v_proj"}, "['q_proj', 'v_proj']", "'.*v_proj'"),
        ({"seed": 4}, "3", "4"),
        ({"unfit": "skip"}, "'refuse'", "'skip'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_by_name_and_the_remains_stay(
    change, then, now, saved, tmp_path
):
    base = {"target_modules": TARGETS, "out": tmp_path / "out"}
    interrupt(saved("qwen2"), count=2, **base)
    before = {path.name: path.read_bytes() for path in hidden(tmp_path / "out").iterdir()}
    (key,) = change
    with pytest.raises(ValueError, match=rf"\({key} ") as raised:
        init(saved("qwen2"), **(base | change))
    assert f"({key} {then} then, {now} now)" in str(raised.value)
    assert "repeat that command, or remove the folder" in str(raised.value)
    after = {path.name: path.read_bytes() for path in hidden(tmp_path / "out").iterdir()}
    assert after == before
    assert init(saved("qwen2"), **base).resumed == 2


def changed_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 3.0}))


def changed_header(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(2)}, folder / "model.safetensors")


def changed_values(folder):
    """The same header, other weights: the next step of a training run, saved in the same place."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("change", [changed_config, changed_header, changed_values])
def test_another_checkpoint_is_refused(change, tmp_path):
    folder = save_model("qwen2", tmp_path / "model", torch.bfloat16)
    interrupt(folder, out=tmp_path / "out", count=3)
    change(folder)
    with pytest.raises(ValueError, match="before the checkpoint's files were written again"):
        init(folder, out=tmp_path / "out")
    assert len((hidden(tmp_path / "out") / "journal.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("module", "key"), [(torch, "torch"), (stream, "orthora")])
def test_another_version_is_refused(module, key, saved, tmp_path, monkeypatch):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=3)
    monkeypatch.setattr(module, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=rf"\({key} '.*' then, '9.9.9' now\)"):
        init(saved("qwen2"), out=tmp_path / "out")


def test_what_decides_nothing_may_change(saved, unbroken, tmp_path):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=3, workers=1)
    assert init(saved("qwen2"), "lora-rlpo", out=tmp_path / "out", workers=3).resumed == 3
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


@pytest.mark.parametrize("size", [0, 20, 300, 2000, None])
def test_what_was_killed_before_its_plan_stood_is_swept_away(size, saved, unbroken, tmp_path):
    folder = hidden(tmp_path / "out")
    folder.mkdir()
    expected = unbroken("qwen2", "rlpo")
    if size is None:  # of other settings
        SlotFile(folder / ADAPTER, {"other": (3, 4)}).close()
    else:
        (folder / ADAPTER).write_bytes((expected / ADAPTER).read_bytes()[:size])
    (folder / ".plan.json.x1y2").write_text("{")
    (folder / "journal.jsonl").write_text('{"name": "model.layers.0.self_attn.q_proj"}\n')
    assert init(saved("qwen2"), out=tmp_path / "out").resumed == 0
    assert_same_files(tmp_path / "out", expected)


def test_stray_files_do_not_get_into_the_adapter(saved, unbroken, tmp_path):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=3)
    (hidden(tmp_path / "out") / ".adapter_config.json.x1y2").write_text("{")
    init(saved("qwen2"), out=tmp_path / "out")
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


# Others at the same folder


@pytest.mark.parametrize("when", [0, 7, 14])
def test_a_second_run_is_refused_while_the_first_is_at_work(when, saved, unbroken, tmp_path):
    refused = []

    def report(now):
        if now.done == when:
            for method in ("rlpo", "pissa"):
                with pytest.raises(ValueError, match="another process is writing") as raised:
                    init(saved("qwen2"), method, out=tmp_path / "out")
                refused.append(str(raised.value))

    init(saved("qwen2"), out=tmp_path / "out", report=report)
    assert len(refused) == 2
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


def test_a_second_run_can_not_disturb_one_that_is_still_reserving_its_space(
    saved, unbroken, tmp_path, monkeypatch
):
    refused, reserve = [], SlotFile._reserve

    def slowly(self, size):
        monkeypatch.setattr(SlotFile, "_reserve", reserve)
        with pytest.raises(ValueError, match="another process is writing"):
            init(saved("qwen2"), out=tmp_path / "out")
        refused.append(True)
        reserve(self, size)

    monkeypatch.setattr(SlotFile, "_reserve", slowly)
    init(saved("qwen2"), out=tmp_path / "out")
    assert refused == [True]
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


def test_a_folder_that_took_its_name_in_the_meantime_is_not_begun_again(
    saved, unbroken, tmp_path, monkeypatch
):
    """The second process opens the hidden folder just before the first one renames it."""
    out, flock = tmp_path / "out", fcntl.flock

    def finish_first(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        hidden(out).rename(tmp_path / "elsewhere")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(ValueError, match="another process is writing"):
        init(saved("qwen2"), out=out)
    assert not out.exists()
    assert not hidden(out).exists()


def test_a_lock_ends_with_its_process(saved, tmp_path):
    interrupt(saved("qwen2"), out=tmp_path / "out", count=3)
    for _ in range(2):
        interrupt(saved("qwen2"), out=tmp_path / "out", count=5)
    assert init(saved("qwen2"), out=tmp_path / "out").resumed == 5


def test_file_systems_without_locks_will_do(saved, unbroken, tmp_path, monkeypatch):
    def absent(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", absent)
    interrupt(saved("qwen2"), out=tmp_path / "out", count=3)
    assert init(saved("qwen2"), out=tmp_path / "out").resumed == 3
    assert_same_files(tmp_path / "out", unbroken("qwen2", "rlpo"))


# The name appears with the whole adapter, and not before


def test_the_name_appears_with_all_files_in_one_step(saved, tmp_path, monkeypatch):
    out, seen, replace = tmp_path / "out", [], Path.replace

    def look(self, target):
        if Path(target) == out:
            seen.append({path.name for path in self.iterdir()})
            assert not out.exists()
        return replace(self, target)

    def report(now):
        assert not out.exists()

    monkeypatch.setattr(Path, "replace", look)
    init(saved("qwen2"), "pissa", out=out, report=report)
    files = {ADAPTER, STATE, "adapter_config.json", "orthora.json"}
    assert seen == [files]
    assert {path.name for path in out.iterdir()} == files


@pytest.mark.parametrize("parents", ["", "a/b"])
def test_parents_are_made_and_an_empty_folder_is_taken(parents, saved, unbroken, tmp_path):
    out = tmp_path / parents / "out"
    if not parents:
        out.mkdir()
    init(saved("qwen2"), out=out)
    assert_same_files(out, unbroken("qwen2", "rlpo"))


def test_a_link_to_a_folder_is_followed(saved, unbroken, tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    for name in ("empty", "new"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        init(saved("qwen2"), out=tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name / ADAPTER).is_file()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["empty", "new"]


def test_the_working_folder_can_be_filled(saved, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    init(saved("qwen2"), out=".")
    assert (tmp_path / "here" / ADAPTER).is_file()
    monkeypatch.chdir(tmp_path)


def test_a_mount_point_is_refused_before_the_work(saved, tmp_path, monkeypatch, computed):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "out")
    with pytest.raises(ValueError, match="mount point"):
        init(saved("qwen2"), out=tmp_path / "out")
    assert computed == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_taken_meanwhile_costs_no_work(saved, unbroken, tmp_path):
    out = tmp_path / "out"

    def report(now):
        if now.done == 14:
            out.mkdir()
            (out / "theirs").write_text("x")

    with pytest.raises(OSError, match="not empty"):
        init(saved("qwen2"), out=out, report=report)
    assert [path.name for path in out.iterdir()] == ["theirs"]
    (out / "theirs").unlink()
    assert init(saved("qwen2"), out=out).resumed == 14
    assert_same_files(out, unbroken("qwen2", "rlpo"))


def test_no_handle_stays_open(saved, tmp_path):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("reads Linux's /proc")
    before = len([*Path("/proc/self/fd").iterdir()])
    interrupt(saved("qwen2"), "pissa", out=tmp_path / "out", count=3)
    with pytest.raises(ValueError, match="begun otherwise"):
        init(saved("qwen2"), "rlpo", out=tmp_path / "out")
    init(saved("qwen2"), "pissa", out=tmp_path / "out")
    with pytest.raises(ValueError, match="not empty"):
        init(saved("qwen2"), "pissa", out=tmp_path / "out")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_threads_are_as_before_after_an_interruption(saved, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            init(saved("qwen2"), out=tmp_path / "out", report=stop_after(3))
        assert torch.get_num_threads() == 2  # while the traceback still holds the frames
        assert raised.traceback
    finally:
        torch.set_num_threads(threads)


def test_orthora_is_what_the_plan_calls_it():
    assert stream.__version__ == orthora.__version__
