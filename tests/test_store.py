import json
import math

import pytest

from orthora import store


def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = store.write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError):
        store.write_atomic(file, 3)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_holds_null_for_what_is_not_finite(tmp_path):
    file = store.write_json(tmp_path / "a.json", {"x": [math.nan, 1.0], "y": {"z": math.inf}})
    assert json.loads(file.read_text()) == {"x": [None, 1.0], "y": {"z": None}}


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    def fail():
        with store.new_folder(tmp_path / "a") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with store.new_folder(tmp_path / "a") as folder:
        (folder / "whole").write_text("x")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "whole").read_text() == "x"
    with pytest.raises(ValueError, match="not empty"), store.new_folder(tmp_path / "a"):
        pass


def test_metrics_round_trip_and_a_broken_line_is_named(tmp_path):
    log = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        store.append_metrics(log, {"step": step, "x": math.nan})
    assert store.read_metrics(log) == [{"step": 1, "x": None}, {"step": 2, "x": None}]
    with log.open("a") as file:
        file.write('{"step": 3')
    with pytest.raises(ValueError, match="line 3"):
        store.read_metrics(log)
