"""Studies on a Ray cluster of three nodes: what dies there is done again, to the same bits."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from driven import GRID, kill, results, run, start, wait_for, write_study

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
_MEMORY = 80_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    args = {"num_cpus": 1, "object_store_memory": _MEMORY, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=args)
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=_MEMORY)
    yield made
    made.shutdown()


def cells_at_work(folder: Path) -> list[psutil.Process]:
    """Processes whose output goes into a cell's log, wherever they come from."""
    found = []
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, OSError):
            log = str(Path(f"/proc/{process.pid}/fd/1").readlink())
            if log.startswith(str(folder / "cells")):
                found.append(process)
    return found


def node_of(process: psutil.Process, nodes: list[Any]) -> Any:
    """The cluster's node below whose raylet a process runs; None for another's."""
    above = {one.pid for one in process.parents()}
    for node in nodes:
        (raylet,) = node.all_processes["raylet"]
        if raylet.process.pid in above:
            return node
    return None


def settled(process: psutil.Process) -> bool:
    """Whether a process has been stopped, or has ended before."""
    return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


def freeze_one(folder: Path, nodes: list[Any]) -> tuple[psutil.Process, Any] | None:
    """Stop a cell at work on one of some nodes, so that it cannot end first; it and its node."""
    for process in cells_at_work(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            node = node_of(process, nodes)
            if node is not None:
                process.suspend()
                wait_for(partial(settled, process))
                if process.status() == psutil.STATUS_STOPPED:
                    return process, node
    return None


def test_a_node_a_worker_and_the_driver_are_killed_and_nothing_is_lost(cluster, tmp_path):
    (tmp_path / "calm").mkdir()
    calm = write_study(tmp_path / "calm", grid=GRID.replace("seed = [0]", "seed = [0, 1]"))
    run("run", calm)
    (tmp_path / "wild").mkdir()
    wild = write_study(tmp_path / "wild", grid=GRID.replace("seed = [0]", "seed = [0, 1]"))
    folder = tmp_path / "wild" / "out"

    driver = start("run", wild, "--ray", cluster.address)  # the driver dies
    wait_for(lambda: [*folder.glob("runs/*/metrics.jsonl")])
    kill(driver.pid)
    driver.communicate()
    wait_for(lambda: not cells_at_work(folder), 60)

    driver = start("run", wild, "--ray", cluster.address)
    try:
        wait_for(lambda: cells_at_work(folder))
        dying = cells_at_work(folder)[0]
        # On another node than the one that dies, or what it says of the worker is lost with it.
        others = [node for node in cluster.worker_nodes if node is not node_of(dying, [node])]
        kill(dying.pid)  # a worker dies
        held: list[tuple[psutil.Process, Any]] = []
        wait_for(lambda: held.extend(filter(None, [freeze_one(folder, others)])) or held)
        ((cell, victim),) = held
        cluster.remove_node(victim, allow_graceful=False)  # a node dies, with a cell on it
        cell.resume()
        out, _ = driver.communicate(timeout=300)
    finally:
        if driver.poll() is None:
            kill(driver.pid)
    assert driver.returncode == 0, out
    assert "its process was ended by SIGKILL" in out
    assert "Ray lost it" in out
    assert results(wild) == results(calm)
