"""Tests that share costly fixtures run in one worker."""

import os

import pytest

pytestmark = pytest.mark.xdist_group("groups")


@pytest.mark.parametrize("number", range(6))
def test_a_group_stays_in_one_worker(number, tmp_path_factory):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    seen = tmp_path_factory.getbasetemp().parent / "workers-of-the-group"
    with seen.open("a", encoding="utf-8") as file:
        file.write(f"{worker}\n")
    assert set(seen.read_text(encoding="utf-8").split()) == {worker}


def test_the_group_is_in_the_id(request):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("without workers there are no groups")
    assert request.node.nodeid.endswith("@groups")
