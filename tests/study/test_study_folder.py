"""What a study's folder holds stays what it is: new evaluations, other defaults, damage."""

import json
import re
import shutil
from pathlib import Path

import pytest
from driven import EVALUATION, GRID, run, write_study

from orthora.cli import main
from orthora.study import load_study, plan
from orthora.study.cost import cost_of
from orthora.study.folder import works
from orthora.study.results import load_results
from orthora.study.spec import StudySpec

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture
def copied(small_study, tmp_path) -> Path:
    """The file of the small study, with a copy of its folder."""
    shutil.copytree(small_study[0].parent / "out", tmp_path / "out")
    return write_study(tmp_path)


def first_run(spec: StudySpec) -> Path:
    return spec.folder / "runs" / plan(spec)[0].name


def states(spec: StudySpec) -> list[str]:
    return [record.state for record in load_results(spec).records]


def test_an_evaluation_that_fails_takes_nothing_from_what_is_there(copied):
    plain, data = copied.read_text(), copied.parent / "more.jsonl"
    more = EVALUATION.replace("problems = 8\n", "").replace("test", "more")
    more = more.replace('"arithmetic"', f'"file"\ndata = "{data}"')
    asked = plain.replace("[settings]", 'report = "test"\n[settings]') + more
    whole = [record.scores for record in load_results(load_study(copied)).records]
    copied.write_text(asked)
    data.write_text("no json\n")
    assert "evaluation 'more': ValueError" in run("run", copied, code=2)
    found = load_results(load_study(copied)).records
    assert [record.state for record in found] == ["failed"] * 4
    assert [record.scores for record in found] == whole
    copied.write_text(plain)  # nobody asks for it any more
    assert states(load_study(copied)) == ["finished"] * 4
    copied.write_text(asked)
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    assert "failed:" not in run("run", copied, "--retry-failed")
    found = load_results(load_study(copied)).records
    assert [{*record.scores} for record in found] == [{"test", "more"}] * 4


def test_a_run_that_was_made_with_another_default_is_named(copied, capsys):
    spec = load_study(copied)
    config = first_run(spec) / "config.toml"
    config.write_text(config.read_text().replace("kl_max_change = 1.3", "kl_max_change = 1.5"))
    (line,) = load_results(spec).unlike
    assert line == (
        "not alike: 1 cell was made with settings that the study does not give: kl_max_change (1.5 "
        f"then, 1.3 now) ({first_run(spec).name})"
    )
    assert main(["study", "report", str(copied)]) == 0
    assert re.sub(r"\s+", " ", line) in re.sub(r"\s+", " ", capsys.readouterr().out)
    (copied.parent / "new").mkdir()
    other = write_study(copied.parent / "new", more=f'reuse = ["{spec.folder}"]', name="new")
    assert main(["study", "run", str(other)]) == 2
    assert "as a default has changed: kl_max_change (1.5 then, 1.3 now)" in capsys.readouterr().err


def test_a_run_of_a_version_with_other_settings_is_named_and_read(copied):
    spec = load_study(copied)
    config = first_run(spec) / "config.toml"
    config.write_text(config.read_text() + "kl_of_old = 3\n")
    (line,) = load_results(spec).unlike
    assert "that the study does not give: unknown config key 'kl_of_old'" in line
    assert all(record.scores for record in load_results(spec).records)


def test_a_dry_run_counts_what_is_taken_from_another_study(copied, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    more = GRID.replace("seed = [0]", "seed = [0, 1]")
    out = load_study(copied).folder
    other = write_study(tmp_path / "new", grid=more, more=f'reuse = ["{out}"]', name="new")
    assert main(["study", "run", str(other), "--dry-run"]) == 0
    assert f"4 of them are taken from {out}" in capsys.readouterr().out
    assert not load_study(other).folder.exists()


def test_what_is_no_study_is_not_reused_and_nothing_is_begun(tmp_path, capsys):
    (tmp_path / "else").mkdir()
    file = write_study(tmp_path, more=f'reuse = ["{tmp_path / "else"}"]')
    for more in ([], ["--dry-run"]):
        assert main(["study", "run", str(file), *more]) == 2
        assert "is no study's folder; take it out" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_not_at_hand(tmp_path, capsys):
    file = write_study(tmp_path, grid=GRID + 'model = "/nowhere/model"\n')
    assert main(["study", "run", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "to run it here, one thing at least is missing: cell lora-1e-3" in out
    assert "/nowhere/model" in out


@pytest.mark.parametrize(
    ("key", "value"), [("state", "banana"), ("seconds", "x"), ("by_training", 3), ("what", 1)]
)
def test_an_ending_that_nobody_wrote_is_refused_by_name(copied, capsys, key: str, value: object):
    spec = load_study(copied)
    file = spec.folder / "cells" / plan(spec)[0].name / "cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    for what in (["run", "--dry-run"], ["report"]):
        assert main(["study", what[0], str(copied), *what[1:]]) == 2
        error = capsys.readouterr().err
        assert f"{file} is corrupt (" in error
        assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "content", "says"),
    [
        ("eval-test-*/scores.json", "{}", "has no pass_at_1"),
        ("eval-test-*/scores.json", '{"pass_at_1": null}', "has no pass_at_1"),
        ("metrics.jsonl", "3\n", "is corrupt: '3' is no row"),
    ],
)
def test_damaged_results_are_one_clear_line(copied, capsys, place: str, content: str, says: str):
    file = next(first_run(load_study(copied)).glob(place))
    file.write_text(content)
    assert main(["study", "report", str(copied)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert says in error


@pytest.mark.parametrize("damage", ["gone", "no result", "no steps"])
def test_a_plan_is_made_whatever_is_left_of_a_run(copied, damage: str):
    spec = load_study(copied)
    run_folder = first_run(spec)
    if damage == "gone":
        shutil.rmtree(run_folder)
    else:
        text = json.loads((run_folder / "result.json").read_text())
        (run_folder / "result.json").unlink()
        if damage == "no steps":
            (run_folder / "result.json").write_text(json.dumps(text | {"steps": None}))
    cells = plan(spec)
    assert "as the 3 cells" in cost_of(spec, cells, works(spec, cells)).basis
