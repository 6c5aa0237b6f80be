import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import orthora
from orthora import pool
from orthora.adapters import starts
from orthora.adapters.starts import How
from orthora.linalg import full
from orthora.linalg.precision import float32_products
from orthora.methods import registry

NAMES = orthora.methods("initialisation")
SPECTRAL = [name for name in NAMES if registry.get(name).spectral]
RANK = 4
SHAPES = [(160, 200), (200, 160), (160, 160), (96, 64)]  # on both sides of the exact path's 128
ITEMS = [(m, n, i) for m, n in SHAPES for i in range(3)]


def weight(m, n, seed):
    """A float32 matrix whose ends of the spectrum stand apart from the rest."""
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    U, V = (
        torch.linalg.qr(torch.randn(side, k, generator=generator, dtype=torch.float64))[0]
        for side in (m, n)
    )
    S = torch.logspace(1, -1, k, dtype=torch.float64)
    S[:8] *= torch.linspace(3, 2, 8)
    S[-8:] *= torch.linspace(0.5, 0.3, 8)
    return (U * S @ V.mT).float()


WEIGHTS = {item: weight(*item) for item in ITEMS}


def starter(method, rank=RANK):
    return lambda W, item: starts.compute(W, str(item), rank, How(method, 2.0, 0))


@pytest.fixture
def two_threads():
    """The caller's thread count and precision, unlike what workers set."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    assert thread_counts() == {2}
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def thread_counts():
    """Those of PyTorch, OpenMP and MKL; the last is one for all threads of the process."""
    info = torch.__config__.parallel_info()
    return {int(n) for n in re.findall(r"get_(?:num|max)_threads\(\) : (\d+)", info)}


def assert_settings_are_back():
    assert thread_counts() == {2}
    assert torch.get_float32_matmul_precision() == "medium"


# One weight


@pytest.mark.parametrize("method", NAMES)
def test_a_start_is_the_methods_factors_their_norm_and_their_certificates(method):
    W = WEIGHTS[ITEMS[0]]
    start = starts.compute(W, "a.b", RANK, How(method, 1.5, 7))
    A, B = orthora.initialize(W, method, RANK, scale=1.5, seed=starts.module_seed(7, "a.b"))
    assert torch.equal(start.factors.A, A)
    assert torch.equal(start.factors.B, B)
    norm = float(torch.linalg.matrix_norm(B.double() @ A.double()))
    assert math.isclose(start.norm, norm, rel_tol=1e-9)
    assert (start.norm > 0) == registry.get(method).anchored
    assert bool(start.certificates) == registry.get(method).spectral
    assert start.seconds >= 0


def test_a_module_draws_from_the_runs_seed_and_its_name_alone():
    seeds = {starts.module_seed(seed, name) for seed in range(20) for name in ("a", "b", "a.b")}
    assert len(seeds) == 60
    assert starts.module_seed(3, "model.layers.0.q") == 116586833  # a run must be repeatable


@pytest.mark.parametrize(
    ("W", "rank", "words"),
    [
        (torch.full((4, 3), math.nan), 2, "12 NaN or Inf"),
        (torch.ones(4, 3), 4, "rank 4 does not fit"),
    ],
)
def test_a_weight_that_will_not_do_is_named(W, rank, words):
    with pytest.raises(ValueError, match=rf"^the\.module: .*{words}"):
        starts.compute(W, "the.module", rank, How("rlpo", 2.0, 0))


# Many weights, side by side


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("method", ["rlpo", "milora", "lora"])
def test_the_starts_are_the_same_bits_however_many_run_side_by_side(method, workers):
    found = dict(pool.compute_all(ITEMS, WEIGHTS.get, starter(method), workers=workers))
    assert found.keys() == set(ITEMS)
    for item, start in found.items():
        alone = starter(method)(WEIGHTS[item], item)
        assert torch.equal(start.factors.A, alone.factors.A)
        assert torch.equal(start.factors.B, alone.factors.B)
        assert start.certificates == alone.certificates


@pytest.mark.parametrize("workers", [1, 3])
def test_the_caller_loads_and_at_most_one_loaded_weight_waits(workers, two_threads):
    lock, alive, most = threading.Lock(), 0, 0
    loaders, computers, threads = set(), set(), set()

    def load(item):
        nonlocal alive, most
        loaders.add(threading.get_ident())
        with lock:
            alive += 1
            most = max(most, alive)
        return torch.ones(2, 2)

    def start(W, item):
        nonlocal alive
        computers.add(threading.get_ident())
        threads.update(thread_counts())
        time.sleep(0.002)
        with lock:
            alive -= 1
        return starts.compute(W, "x", 1, How("lora", 1.0, 0))

    assert len(list(pool.compute_all(range(40), load, start, workers=workers))) == 40
    assert loaders == {threading.get_ident()}
    assert loaders.isdisjoint(computers)
    assert len(computers) == workers
    assert threads == {1}
    assert most <= workers + 1


def test_no_weights_are_no_starts(two_threads):
    assert list(pool.compute_all([], WEIGHTS.get, starter("lora"), workers=2)) == []
    assert_settings_are_back()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_first_error_is_raised_and_the_rest_is_called_off(workers, two_threads):
    begun, before = [], threading.active_count()

    def start(W, item):
        begun.append(item)
        with float32_products():
            if item == 7:
                raise ValueError("item 7 is bad")
            if item == 8 + 2 * workers:
                raise ValueError("this one comes too late")
            time.sleep(0.002)
        return starter("lora")(W, item)

    with pytest.raises(ValueError, match="item 7 is bad"):
        list(pool.compute_all(range(100), lambda _: torch.ones(5, 5), start, workers=workers))
    assert 7 < len(begun) <= 9 + 2 * workers
    assert threading.active_count() == before
    assert_settings_are_back()


def test_an_error_in_loading_waits_for_the_work_at_hand(two_threads):
    done = []

    def load(item):
        if item == 4:
            raise OSError("gone")
        return torch.ones(5, 5)

    def start(W, item):
        time.sleep(0.02)
        done.append(item)
        return starter("lora")(W, item)

    with pytest.raises(OSError, match="gone"):
        list(pool.compute_all(range(9), load, start, workers=2))
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count <= 4
    assert_settings_are_back()


def test_who_stops_early_leaves_no_thread_and_no_setting_behind(two_threads):
    before = threading.active_count()
    running = pool.compute_all(range(50), lambda _: WEIGHTS[ITEMS[0]], starter("rlpo"), workers=2)
    next(running)
    running.close()
    assert threading.active_count() == before
    assert_settings_are_back()


# The route of GPUs


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Let CPU tensors take the paths of CUDA tensors; `linalg` asks nothing but this."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)


@pytest.mark.parametrize("method", NAMES)
def test_batches_give_the_starts_of_the_pool(method, monkeypatch, as_if_on_a_gpu):
    alone = []
    spectrum = full.spectrum
    monkeypatch.setattr(full, "spectrum", lambda *a, **k: alone.append(a) or spectrum(*a, **k))
    batches = starts.compute_in_batches(
        ITEMS, WEIGHTS.get, starter(method), alike=lambda item: item[:2], method=method
    )
    found = dict(batches)
    monkeypatch.undo()
    assert list(found) == ITEMS
    for item, expected in pool.compute_all(ITEMS, WEIGHTS.get, starter(method), workers=1):
        for ours, theirs in zip(found[item].factors, expected.factors, strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(theirs.norm()))
        paths = [certificate.path for certificate in found[item].certificates]
        wanted = "gram-eigh-float64" if min(item[:2]) > 128 else "svd-float64"
        assert paths == len(paths) * [wanted]
        assert bool(paths) == (method in SPECTRAL)
    assert bool(alone) == (method == "geora")  # whose masked weight is in no batch


def test_a_batch_holds_weights_that_are_alike_and_no_more_than_eight(monkeypatch):
    batches = []
    decomposed = starts.decomposed
    monkeypatch.setattr(
        starts, "decomposed", lambda W: batches.append([w.shape for w in W]) or decomposed(W)
    )
    shapes = [(12, 9)] * 19 + [(9, 12)] * 2
    found = starts.compute_in_batches(
        range(21),
        lambda i: torch.randn(shapes[i], generator=torch.Generator().manual_seed(i)),
        starter("rlpo"),
        alike=lambda i: shapes[i],
        method="rlpo",
    )
    assert [item for item, _ in found] == list(range(21))
    assert [len(batch) for batch in batches] == [8, 8, 3, 2]
    assert all(len(set(batch)) == 1 for batch in batches)


def test_methods_without_subspaces_decompose_nothing(monkeypatch):
    monkeypatch.setattr(starts, "decomposed", lambda W: pytest.fail("decomposed"))
    for method in sorted(set(NAMES) - set(SPECTRAL)):
        found = starts.compute_in_batches(
            ITEMS, WEIGHTS.get, starter(method), alike=lambda item: item[:2], method=method
        )
        assert len(list(found)) == len(ITEMS)


# How many at once


def test_the_workers_are_the_cores_as_far_as_memory_goes(monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setattr(pool, "_free_memory", lambda: 10_000)
    assert pool.default_workers() == cores
    assert pool.default_workers(5000 // cores) == cores
    assert pool.default_workers(5000) == 1
    assert pool.default_workers(10**9) == 1


def test_the_page_cache_counts_as_free_memory(monkeypatch):
    def meminfo(self):
        return "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:       7 kB\nBuffers: 3 kB\n"

    monkeypatch.setattr(Path, "read_text", meminfo)
    assert pool._free_memory() == 7 * 1024


def test_systems_that_do_not_tell_their_free_memory_count_all_of_it(monkeypatch):
    def absent(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert pool._free_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Several processes

SCRIPT = """
import sys
from datetime import timedelta
import torch
from torch import distributed
from conftest import make_model
from peft.tuners.tuners_utils import BaseTunerLayer
import orthora
from orthora import pool
from orthora.adapters import starts

folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
    timeout=timedelta(seconds=60),
)
compute, computed = starts.compute, []
starts.compute = lambda W, name, *rest: computed.append(name) or compute(W, name, *rest)
seen = {}
for method in ("rlpo", "pissa", "lora"):
    model = orthora.adapt(make_model("qwen2", seed=rank), method, rank=4)
    seen[method] = {n: t.clone() for n, t in model.state_dict().items() if ".base_layer." not in n}
    seen[method + " weights"] = make_model("qwen2", seed=rank).state_dict()
moe = orthora.adapt(make_model("qwen3_moe", seed=rank), "rlpo", rank=4)
seen["moe"] = {n: t.clone() for n, t in moe.state_dict().items() if ".lora_" in n}
seen["computed"] = list(computed)

def refused(model):
    try:
        orthora.adapt(model, "rlpo", rank=4)
    except Exception as error:
        bare = not any(isinstance(module, BaseTunerLayer) for module in model.modules())
        return type(error).__name__, str(error), bare

spoilt = make_model("qwen2")
if rank == 0:
    spoilt.model.layers[1].mlp.up_proj.weight.data[2, 3] = float("nan")
seen["NaN"] = refused(spoilt)

def breaks(*_):
    raise RuntimeError("out of order")

starts.compute = breaks
seen["RuntimeError"] = refused(make_model("qwen2"))
torch.save(seen, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes of one job saw, whose bases differ."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    running = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, env=environment)
        for rank in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("method", ["rlpo", "pissa", "lora", "moe"])
@pytest.mark.xdist_group("ranks")  # one worker starts the two processes
def test_all_ranks_hold_the_bits_of_rank_0(method, ranks):
    first, second = (
        {n: t for n, t in rank[method].items() if ".lora_" in n or ".anchor_" in n}
        for rank in ranks
    )
    assert first.keys() == second.keys() != set()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["rlpo", "pissa", "lora"])
@pytest.mark.xdist_group("ranks")
def test_the_bits_of_rank_0_are_those_of_its_own_weights(method, ranks):
    name = "model.layers.1.mlp.up_proj"
    W = ranks[0][f"{method} weights"][f"{name}.weight"]
    assert not torch.equal(W, ranks[1][f"{method} weights"][f"{name}.weight"])
    A, B = orthora.initialize(W, method, 4, scale=8.0, seed=starts.module_seed(0, name))
    for rank in ranks:
        assert torch.equal(rank[method][f"base_model.model.{name}.lora_A.default.weight"], A)
        assert torch.equal(rank[method][f"base_model.model.{name}.lora_B.default.weight"], B)


@pytest.mark.xdist_group("ranks")
def test_only_rank_0_computes(ranks):
    assert len(ranks[0]["computed"]) == 3 * 14 + 24
    assert ranks[1]["computed"] == []


@pytest.mark.xdist_group("ranks")
def test_an_error_on_rank_0_is_raised_on_all_and_nobody_hangs(ranks):
    kinds, texts, bare = zip(*(rank["NaN"] for rank in ranks), strict=True)
    assert kinds == ("ValueError", "ValueError")
    assert texts[0] == texts[1]
    assert texts[0].startswith("model.layers.1.mlp.up_proj: the weight holds 1 NaN")
    assert bare == (True, True)
    kinds, texts, bare = zip(*(rank["RuntimeError"] for rank in ranks), strict=True)
    assert kinds == ("RuntimeError", "ValueError")
    assert texts == ("out of order", "out of order")
    assert bare == (True, True)
