"""Evaluations as rows of the report."""

import json

import pytest

import orthora
from orthora.cli import main
from orthora.evaluations import EVAL_COLUMNS, load_evaluations

CONFIG = {
    "model": "tiny",
    "task": "arithmetic",
    "problems": 6,
    "samples": 2,
    "max_response_tokens": 30,
}


@pytest.fixture
def runs(tmp_path):
    """Two evaluations, one of them inside a run's folder, and a file of another tool."""
    for place, seed in (("evals/a", 0), ("runs/m/evals/b", 1)):
        orthora.evaluate(CONFIG | {"seed": seed, "out": str(tmp_path / place)})
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "scores.json").write_text("[1, 2]")
    return tmp_path


def test_the_page_and_the_terminal_have_a_row_for_each(runs, capsys):
    views = load_evaluations(runs)
    assert [view.folder for view in views] == ["evals/a", "runs/m/evals/b"]
    assert main(["report", "--runs", str(runs)]) == 0
    page, printed = (runs / "report.html").read_text(), capsys.readouterr().out
    for view in views:
        assert f'<th scope="row">{view.folder}</th>' in page
        for name, cell in EVAL_COLUMNS:
            assert name in page
            assert cell(view) in page
        assert f"{view.scores['pass_at_1']:.3f}" in printed
    assert "Training curves" not in page, "there are no runs"


def test_a_damaged_one_is_named_with_the_remedy(runs, capsys):
    path = runs / "evals" / "a" / "scores.json"
    scores = json.loads(path.read_text())
    for damage in (
        {},
        {"config": {}},
        scores | {"pass_at_1": 10**400},
        scores | {"interval": None},
    ):
        path.write_text(json.dumps(damage))
        assert main(["report", "--runs", str(runs)]) == 2
        error = capsys.readouterr().err
        assert f"{path} is corrupt" in error
        assert "orthora rescore" in error
        assert error.count("\n") == 1


def test_a_folder_with_nothing_in_it_is_refused(tmp_path, capsys):
    assert main(["report", "--runs", str(tmp_path)]) == 2
    assert "no */result.json and no scores.json" in capsys.readouterr().err
