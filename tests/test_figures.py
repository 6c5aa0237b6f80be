"""Figures draw the table's numbers, say what their intervals are, and name what is missing."""

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_data import (
    SINGLE,
    geometry,
    run_rows,
    write_checkpoint,
    write_run,
    write_scores,
    write_start,
)

from orthora.figures import METHOD_COLOURS
from orthora.figures import geometry as figures
from orthora.figures.catalogue import (
    ENTRIES,
    catalogue_markdown,
    draw,
    entry_of,
    missing,
    rows_of_catalogue,
)
from orthora.figures.command import run_figure
from orthora.figures.files import save
from orthora.figures.lines import at_end, lines, of_weights, shift_is_known
from orthora.figures.maps import module_types, thinned
from orthora.figures.panels import Drawing, Heat, Panel, Series, gist, number, numbers_of
from orthora.figures.render import render
from orthora.figures.scores import score
from orthora.figures.source import collect, find, order_of
from orthora.figures.style import DEFAULT_STYLE, DOUBLE, Style, layer_colour, styles_of
from orthora.figures.style import SINGLE as COLUMN
from orthora.figures.svg import DARK, contrast, on_dark
from orthora.figures.tables import TextTable, latex_text
from orthora.runs import load_runs
from orthora.stats import t_interval
from orthora.table import BASE, QUANTITIES, Row, frame, write_table

FIGURES = [entry for entry in ENTRIES if entry.kind == "figure"]
TABLES = [entry for entry in ENTRIES if entry.kind == "table"]
RUNS = {"lora-0": "lora", "lora-1": "lora", "rlpo-0": "rlpo", "rlpo-1": "rlpo", "dora-0": "dora"}
T3 = 4.302652729911275  # Student's t at 97.5 % with 2 degrees of freedom
NAN = math.nan


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two methods with two seeds, a third with one, evaluations, a start, and measured weights."""
    root = tmp_path_factory.mktemp("study") / "runs"
    for place, (name, method) in enumerate(RUNS.items()):
        folder = write_run(root, name, method, seed=int(name[-1]), score=0.4 + 0.03 * place)
        for step in (5, 10):
            checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
            write_scores(folder / "eval" / f"step-{step}", "gsm8k", checkpoint, 0.2 + step / 100)
    write_start(root / "start", "rlpo", 2.0)
    write_table(root / "geometry.parquet", [geometry(RUNS)], {})
    return root


@pytest.fixture(scope="module")
def table(study):
    return collect([study])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, each at two rates and two ranks, and one whose rate follows the KL."""
    root = tmp_path_factory.mktemp("sweep")
    for method in ("lora", "rlpo"):
        for rate in (1e-3, 1e-4):
            for rank in (8, 16):
                write_run(root, f"{method}-{rate}-{rank}", method, rate=rate, rank=rank,
                          score=0.4 + 100 * rate + rank / 1000)  # fmt: skip
    write_run(root, "adaptive", "dora", schedule="adaptive-kl", kl_target=2e-3)
    return collect([root])


@pytest.fixture
def full(request, table, sweep):
    """The table that has everything that an entry needs."""
    return sweep if request.getfixturevalue("entry").varies else table


def drawn_lines(figure):
    """Label -> points of every line that a legend could name, by panel."""
    return [
        {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}
        for axes in figure.axes
    ]


def svg_of(shown, path):
    return save(shown, path)[0].read_bytes()


# Catalogue


def test_only_known_numbers_of_the_paper_are_claimed():
    assert {alias for entry in ENTRIES for alias in entry.aliases} == {
        "fig3", "fig7", "fig9", "table1", "table4", "table6", "table7",
    }  # fmt: skip
    names = {alias: entry_of(alias).name for alias in ("fig3", "fig7", "fig9", "table4")}
    assert names == {"fig3": "energy-cumulative", "fig7": "row-alignment", "fig9": "spectra",
                     "table4": "start-norms"}  # fmt: skip
    claimed = [e for e in ENTRIES if e.paper]
    for entry in claimed:  # where the table's own dictionary names a source, they agree
        for need in entry.needs:
            source = QUANTITIES[need].source if need in QUANTITIES else ""
            assert not source or any(part in source for part in entry.paper.split(", "))


def test_every_quantity_of_weights_that_is_needed_exists():
    for entry in ENTRIES:
        if entry.source in ("weights", "base"):
            needs = {one for need in entry.needs for one in need.split("|")}
            assert needs <= set(QUANTITIES), entry.name


def test_names_are_unique_and_every_entry_says_what_it_shows():
    names = [name for entry in ENTRIES for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    for name, shows, source, _ in rows_of_catalogue():
        assert shows.endswith("."), name
        assert source.startswith("orthora ")


def test_the_documentation_has_the_catalogue():
    page = (Path(__file__).parents[1] / "docs" / "figures.md").read_text(encoding="utf-8")
    assert catalogue_markdown() in page


def test_the_documented_code_runs(study, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs/figures.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/study").symlink_to(study)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "head-energy.pdf").is_file()


@pytest.mark.parametrize("entry", FIGURES, ids=lambda e: e.name)
def test_every_figure_is_drawn_with_numbers_and_a_caption(entry, full):
    shown = draw(entry.name, full)
    assert isinstance(shown, Drawing)
    figure = shown.figure()
    assert figure.get_figwidth() in (COLUMN, DOUBLE)
    assert shown.text.endswith(".")
    for panel in shown.panels:
        if isinstance(panel, Heat):
            assert np.isfinite(panel.values).all()
        else:
            assert panel.series
            assert all(math.isfinite(y) for one in panel.series for y in one.y)
        assert numbers_of(panel)[1]
        assert re.search(r"\d", gist(panel))
    assert "no values recorded" not in {t.get_text() for axes in figure.axes for t in axes.texts}


@pytest.mark.parametrize("entry", FIGURES, ids=lambda e: e.name)
def test_text_is_at_least_seven_points_and_inside_the_figure(entry, full):
    from matplotlib.text import Text

    figure = draw(entry.name, full).figure()
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            assert text.get_fontsize() >= 7
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= -1, entry.name
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for legend in figure.legends:  # the legend covers no chart and is not cut
        box = legend.get_window_extent()
        assert box.x0 >= -1, entry.name
        assert box.x1 <= width + 1
        assert all(not box.overlaps(axes.get_window_extent()) for axes in figure.axes)


@pytest.mark.parametrize("entry", TABLES, ids=lambda e: e.name)
def test_every_table_has_rows_as_wide_as_its_head(entry, full):
    shown = draw(entry.name, full)
    assert isinstance(shown, TextTable)
    assert shown.rows
    assert {len(row) for row in shown.rows} == {len(shown.head)}
    assert shown.text.endswith(".")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_missing_rows_are_named_with_the_command_that_makes_them(entry, full):
    none = full[~full["quantity"].str.fullmatch("|".join(
        re.escape(one).replace(r"\*", ".*") for need in entry.needs for one in need.split("|")
    ))]  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(repr(entry.name))) as error:
        draw(entry.name, none, "runs/a runs/b")
    text = str(error.value)
    assert "\n" not in text
    assert entry.needs[0].split("|")[0] in text
    command = {"training": "orthora train", "scores": "orthora eval", "starts": "orthora init"}
    assert command.get(entry.source, "orthora measure runs/a runs/b") in text


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.source not in ("base", "starts")], ids=lambda e: e.name
)
def test_a_run_without_rows_is_left_out_and_named(entry, full):
    needs = {one for need in entry.needs for one in need.split("|")}
    mine = full["quantity"].map(lambda q: q in needs or q.split("/")[0] + "/*" in needs)
    method = "rlpo" if entry.varies else "dora"
    shown = draw(entry.name, full[~(mine & (full["method"] == method))])
    assert re.search(f"No rows of: {method}", shown.text)
    if isinstance(shown, Drawing):
        labels = {one.label for p in shown.panels if isinstance(p, Panel) for one in p.series}
        assert not any(label.startswith(method) for label in labels)
    else:
        assert method not in {row[0] for row in shown.rows}


def test_one_measured_step_is_no_course_of_similarity(table):
    last = table[(table["module"] == "") | (table["step"] == 10)]
    with pytest.raises(ValueError, match=r"2 steps or more.*save_every > 0.*orthora measure A"):
        draw("subspace-similarity", last, "A")
    shown = draw("head-energy", last)
    assert "One step has a value" in shown.text
    course = {one.label: one.y[-1] for one in draw("head-energy", table).panels[0].series}
    dots = {one.label: one.y[0] for one in shown.panels[0].series}
    assert shown.panels[0].categories == tuple(course)
    assert dots == course


def test_an_unknown_name_gets_the_nearest(table):
    with pytest.raises(ValueError, match=r"unknown figure 'spectr'\. Did you mean 'spectra'"):
        draw("spectr", table)
    with pytest.raises(ValueError, match=r"unknown figure 'xyz'\. Names: "):
        draw("xyz", table)


# Numbers


def test_a_curve_is_the_metrics_log(study, table):
    one = table[table["run"] == "rlpo-0"]
    (panel,) = drawn_lines(draw("reward", one).figure())
    log = [json.loads(line) for line in (study / "rlpo-0/metrics.jsonl").read_text().splitlines()]
    assert panel["rlpo"][:, 0].tolist() == [row["step"] for row in log]
    assert panel["rlpo"][:, 1].tolist() == [row["reward"] for row in log]


def test_seeds_are_drawn_as_mean_and_t_interval(table):
    rows = table[(table["quantity"] == "reward") & (table["method"] == "lora")]
    values = rows.pivot(index="step", columns="run", values="value")
    panel = draw("reward", table).panels[0]
    lora = next(one for one in panel.series if one.label == "lora")
    half = 12.706204736432095 * values.std(axis=1, ddof=1) / math.sqrt(2)
    np.testing.assert_allclose(lora.y, values.mean(axis=1))
    np.testing.assert_allclose(lora.low, values.mean(axis=1) - half)
    np.testing.assert_allclose(lora.high, values.mean(axis=1) + half)
    dora = next(one for one in panel.series if one.label == "dora")
    assert dora.low == ()
    assert "95 % t interval over seeds (none for dora: one seed)" in draw("reward", table).text


def test_t_interval_by_hand():
    low, high = t_interval(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    half = T3 / math.sqrt(3)
    np.testing.assert_allclose(low, [2 - half, 5])
    np.testing.assert_allclose(high, [2 + half, 5])
    with pytest.raises(ValueError, match="1 seeds have no interval"):
        t_interval(np.array([1.0]))
    with pytest.raises(ValueError, match="level is 2"):
        t_interval(np.array([1.0, 2.0]), level=2)


def test_seeds_count_only_where_all_have_a_value(table):
    cut = table[~((table["run"] == "lora-1") & (table["step"] > 6) & (table["module"] == ""))]
    panel = draw("reward", cut).panels[0]
    lengths = {one.label: len(one.x) for one in panel.series}
    assert lengths == {"lora": 6, "rlpo": 10, "dora": 10}


def weights_table(rows):
    """A table of weights as `collect` would label it."""
    found = frame(rows)
    names = found["run"].map(lambda run: run.split("-")[0])
    return found.assign(label=names, setting="1e-3", seed=0)


def weight_rows(run, values, step=5, quantity="nss", at=NAN):
    return [Row(run, run.split("-")[0], step, i, "mlp.up_proj", quantity, at, v)
            for i, v in enumerate(values)]  # fmt: skip


def test_weights_are_median_and_quartiles_of_one_seed():
    small = weights_table(weight_rows("lora-0", [1.0, 2.0, 3.0, 4.0, 10.0]))
    (series,) = lines(small, of_weights(small, "nss")).series
    assert (series.x, series.y, series.low, series.high) == ((5.0,), (3.0,), (2.0,), (4.0,))


def test_weights_of_several_seeds_are_bounded_over_seeds():
    rows = [weight_rows(f"lora-{i}", [v, v, v + 9]) for i, v in enumerate((1.0, 2.0, 3.0))]
    small = weights_table([row for part in rows for row in part])
    found = lines(small, of_weights(small, "nss"))
    half = T3 / math.sqrt(3)
    np.testing.assert_allclose(found.series[0].y, [2.0])
    np.testing.assert_allclose(found.series[0].low, [2 - half])
    assert "Bands: 95 % t interval over seeds." in found.notes


def test_bands_of_one_chart_mean_the_same():
    rows = [*weight_rows("lora-0", [1.0, 2.0]), *weight_rows("lora-1", [3.0, 4.0]),
            *weight_rows("rlpo-0", [5.0, 7.0])]  # fmt: skip
    small = weights_table(rows)
    found = lines(small, of_weights(small, "nss"))
    lora = found.series[0]
    assert (lora.y, lora.low, lora.high) == ((2.5,), (1.75,), (3.25,))
    assert "Bands: quartiles over weights." in found.notes


def test_the_whole_norm_is_the_root_of_squares():
    small = weights_table(weight_rows("lora-0", [3.0, 4.0], quantity="update_norm"))
    assert figures.update_norm(small).panels[0].series[0].y == (5.0,)


def test_no_update_has_no_share():
    rows = [*weight_rows("lora-0", [0.0, 0.0], 0, "head_energy"),
            *weight_rows("lora-0", [0.2, 0.4], 9, "head_energy"),
            *weight_rows("lora-0", [0.0, 0.0], 0, "update_norm"),
            *weight_rows("lora-0", [1.0, 1.0], 9, "update_norm")]  # fmt: skip
    found = of_weights(weights_table(rows), "head_energy")
    assert sorted(found["value"]) == [0.2, 0.4]
    kept = [row for row in rows if row.quantity == "head_energy"]
    assert len(of_weights(weights_table(kept), "head_energy")) == 4


def test_a_shift_known_of_some_weights_alone_is_shown_as_bounds_of_all():
    """On a large model the short k and v have an exact shift, and the MLP has bounds."""
    rows = [
        *weight_rows("a", [0.5, 0.1], quantity="nss_low"),
        *weight_rows("a", [0.5, 0.9], quantity="nss_high"),
        *weight_rows("a", [0.5], quantity="nss"),
        *weight_rows("a", [0.5], quantity="nss", step=4),
        *weight_rows("a", [0.5, 0.1], quantity="nss_low", step=4),
        *weight_rows("a", [0.5, 0.9], quantity="nss_high", step=4),
    ]
    table = weights_table(rows)
    assert not shift_is_known(table)
    shown = draw("nss", table)
    (series,) = shown.panels[0].series
    assert (series.y, series.low, series.high) == ((0.3, 0.3), (0.3, 0.3), (0.7, 0.7))
    assert "Only bounds are known" in " ".join(shown.caption)
    head = draw("geometry", table).head
    assert "nss_low" in head
    assert "nss" not in head
    assert shift_is_known(weights_table([r for r in rows if "_" not in r.quantity]))


def with_norms(rows, norms):
    """Rows of weights, and the norm of the update at each step."""
    for run, steps in norms.items():
        for step, value in steps.items():
            rows += weight_rows(run, [value, value], step, "update_norm")
    return weights_table(rows)


def test_the_end_is_a_runs_last_step_over_all_its_rows():
    """One run has its rows' alignment at the start alone: it has none at the end."""
    rows = []
    for run, steps in (("lora-0", (0, 5)), ("dora-0", (0,))):
        for step in steps:
            for end in ("top", "bottom"):
                rows += weight_rows(run, [0.1 + step / 10] * 2, step, f"row_alignment_{end}")
    found = with_norms(rows, {"lora-0": {0: 0.0, 5: 1.0}, "dora-0": {0: 0.0, 5: 1.0}})
    for run in ("lora-0", "dora-0"):
        more = weights_table(weight_rows(run, [0.5] * 2, 5, "update_relative"))
        found = pd.concat([found, more], ignore_index=True)
    shown = draw("geometry", found)
    column = shown.head.index("row_alignment_top")
    assert {row[0]: row[column][:3] for row in shown.rows} == {"dora": "–", "lora": "0.6"}
    assert "At step 5, the last one measured." in shown.text
    shown = draw("row-alignment", found)
    assert [one.label for panel in shown.panels for one in panel.series] == ["lora", "lora"]
    assert "Measured at earlier steps alone: dora." in shown.text
    with pytest.raises(ValueError, match="have it at earlier steps than their last one alone"):
        draw("row-alignment", found[found["run"] == "dora-0"])


def test_a_series_is_drawn_at_the_end_or_not_at_all():
    rows = weight_rows("lora-0", [1.0, 2.0], 5, "update_sigma", at=1.0)
    rows += weight_rows("dora-0", [1.0, 2.0], 0, "update_sigma", at=1.0)
    found = with_norms(rows, {"lora-0": {5: 1.0}, "dora-0": {0: 1.0, 5: 1.0}})
    shown = draw("update-spectra", found)
    assert [one.label for one in shown.panels[0].series] == ["lora"]
    assert "Measured at earlier steps alone: dora." in shown.text


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_a_spectrum_without_a_value_to_draw_is_drawn_empty(tmp_path, value):
    rows = weight_rows("lora-0", [value] * 2, 5, "update_sigma", at=1.0)
    rows += weight_rows("lora-0", [0.5] * 2, 5, "head_energy")
    rows += weight_rows("lora-0", [0.5] * 2, 5, "tail_energy")
    found = with_norms(rows, {"lora-0": {5: value}})
    shown = draw("update-spectra", found)
    assert "Not drawn: " in shown.text
    for ending in ("svg", "pdf"):
        assert save(shown, tmp_path / f"a.{ending}")
    if value:
        return
    assert "The update is zero: lora." in shown.text
    for name in ("head-energy", "subspace-similarity"):
        with pytest.raises(ValueError, match="; the update is zero in every run") as error:
            draw(name, found)
        assert "measure it" not in str(error.value)


def test_infinite_values_and_places_at_zero_are_no_error(tmp_path):
    style = METHOD_COLOURS["lora"]
    for log in (True, False):
        ends = Series("a", style, (0.0, 2.0), (1.0, math.inf), (0.0, 1.0), (math.inf, math.inf))
        huge = Series("b", style, (0.0, 2.0), (1e100, 1e-100 if log else -1e100))
        for categories in ((), ("x", "y", "z")):
            panel = Panel("t", "x", "y", (ends, huge), log=log, log_x=not categories,
                          levels=((math.inf, "chance"),), categories=categories)  # fmt: skip
            render([panel]).savefig(tmp_path / "a.svg")
    hidden = Panel("t", "x", "y", (Series("a", style, (0.0,), (1.0,)),), log_x=True)
    render([hidden]).savefig(tmp_path / "a.svg")
    assert "No values" in gist(Heat("t", "y", ("0",), ("m",), ((NAN,),), (0.0, 1.0)))


def test_values_that_are_all_missing_are_said_to_be():
    rows = weight_rows("lora-0", [NAN, NAN], 5) + weight_rows("rlpo-0", [1.0, 2.0], 5)
    for total in (None, figures.root_of_squares):
        found = lines(weights_table(rows), of_weights(weights_table(rows), "nss"), whole=total)
        assert [one.label for one in found.series] == ["rlpo"]
        assert found.notes[-1] == "Not drawn, as all its values are missing: lora."


def test_the_last_step_is_each_runs_own():
    rows = [*weight_rows("lora-0", [1.0], 3), *weight_rows("lora-0", [2.0], 8),
            *weight_rows("rlpo-0", [7.0], 5)]  # fmt: skip
    assert at_end(frame(rows))["value"].tolist() == [2.0, 7.0]


def test_cumulative_energy_of_unlike_grids_is_interpolated():
    rows = [Row("lora-0", "lora", 5, 0, "a", "energy_cumulative", at, at) for at in (0.5, 1.0)]
    rows += [Row("lora-0", "lora", 5, 1, "a", "energy_cumulative", at, 1.0) for at in (0.25, 1.0)]
    series = figures.energy_cumulative(weights_table(rows)).panels[0].series[0]
    at = dict(zip(series.x, series.y, strict=True))
    assert at[0.5] == pytest.approx((0.5 + 1.0) / 2)
    assert at[0.125] == pytest.approx((0.125 + 0.5) / 2)
    assert (at[0.0], at[1.0]) == (0.0, 1.0)


def test_the_last_pairs_are_counted_from_the_end():
    rows = [Row("lora-0", "lora", 5, 0, "a", "energy", at, 1 / at) for at in (1, 2, 3, 30, 31)]
    first, last = figures.energy(weights_table(rows)).panels
    assert first.series[0].x == (1.0, 2.0, 3.0)
    assert last.series[0].x == (1.0, 2.0)
    assert last.series[0].y == (1 / 31, 1 / 30)


def test_scores_are_over_problems_for_one_seed_and_over_seeds_for_more(table):
    final = table[table["quantity"] == "pass_at_1"]
    one = score(final[final["method"] == "dora"], table)
    assert (one.value, one.low, one.high) == pytest.approx((0.52, 0.47, 0.58))
    assert (one.seeds, one.over) == (1, "problems")
    two = score(final[final["method"] == "lora"], table)
    half = 12.706204736432095 * 0.03 / math.sqrt(2) / math.sqrt(2)
    assert (two.value, two.low, two.high) == pytest.approx((0.415, 0.415 - half, 0.415 + half))
    assert (two.seeds, two.over) == (2, "seeds")
    rows = {row[0]: row for row in draw("scores", table).rows}
    assert rows["dora"][3:] == ("0.520 [0.470, 0.580]", "0.300 [0.260, 0.340]")
    assert rows["base"][3] == "0.420 [0.370, 0.480]"


def test_scores_of_checkpoints_stand_at_their_steps(table):
    (panel,) = draw("checkpoints", table).panels
    dora = next(one for one in panel.series if one.label == "dora")
    assert (panel.title, dora.x) == ("gsm8k", (5.0, 10.0))
    np.testing.assert_allclose((dora.y, dora.low), ((0.25, 0.3), (0.21, 0.26)))


def checkpoint_scores(table):
    (panel,) = draw("checkpoints", table).panels
    return {one.label: dict(zip(one.x, one.y, strict=True)) for one in panel.series}


def test_checkpoints_count_updates_and_scores_stand_at_training_steps(tmp_path):
    run = write_run(tmp_path, "a", "lora", steps=3)
    for step in (1, 2, 3):
        checkpoint = write_checkpoint(run, step, 4 * step)
        write_scores(run / "ev" / f"half-{step}", "gsm8k", checkpoint, step / 10)
    write_scores(run / "ev/final", "gsm8k", run, 0.9)
    assert checkpoint_scores(collect([tmp_path])) == {"lora": {1: 0.1, 2: 0.2, 3: 0.9}}
    assert draw("scores", collect([tmp_path])).rows[-1][-1].startswith("0.900")


@pytest.mark.parametrize("damaged", [False, True])
def test_the_step_of_a_lost_checkpoint_is_that_of_its_evaluation(tmp_path, damaged):
    run = write_run(tmp_path, "a", "lora", steps=3, update_epochs=1, prompts_per_step=16,
                    mini_batch_prompts=4)  # fmt: skip
    lost = run / "checkpoints/checkpoint-4"
    if damaged:
        (write_checkpoint(run, 1, 4) / "orthora_checkpoint.json").write_text("{")
    write_scores(run / "ev/step-1", "gsm8k", lost, 0.1)
    write_scores(run / "other", "gsm8k", run / "checkpoints/checkpoint-8", 0.2)
    write_scores(run / "another", "gsm8k", run / "checkpoints/checkpoint-9", 0.3)
    write_scores(run / "theirs", "gsm8k", run / "global_step_50", 0.5)
    write_scores(run / "end", "gsm8k", run / "adapter", 0.4)
    found = checkpoint_scores(collect([tmp_path]))
    assert found == {"lora": {1: 0.1, 2: 0.2, 3: 0.4, 50: 0.5}}  # no whole step has 9 updates


def test_a_run_that_moved_keeps_the_steps_of_its_checkpoints(tmp_path):
    old = tmp_path / "old-7"
    run = write_run(tmp_path, "new-9", "lora", steps=3)
    write_checkpoint(run, 2, 8)
    write_scores(run / "ev/half", "gsm8k", old / "checkpoints/checkpoint-8", 0.1)
    write_scores(run / "ev/final", "gsm8k", old, 0.2)
    assert checkpoint_scores(collect([run])) == {"lora": {2: 0.1, 3: 0.2}}


def test_steps_of_one_run_are_no_seeds(tmp_path):
    """One run scored at steps 5 and 10, another at 5 alone: each has one last score."""
    for name, steps in (("lora-0", (5, 10)), ("lora-1", (5,))):
        run = write_run(tmp_path, name, "lora", seed=int(name[-1]))
        for step in steps:
            write_scores(run / f"eval/step-{step}", "gsm8k", run / f"checkpoints/checkpoint-{step}",
                         0.1 * step / 5 + 0.01 * int(name[-1]))  # fmt: skip
    cell = draw("scores", collect([tmp_path])).rows[-1][-1]
    low, high = t_interval(np.array([0.2, 0.11]))
    assert cell == f"0.155 [{low:.3f}, {high:.3f}]"


def test_the_heat_map_is_the_median_by_layer_and_module(table):
    maps = {heat.title: heat for heat in draw("drift-heatmap", table).panels}
    assert list(maps) == ["dora", "lora", "rlpo"]
    rows = at_end(of_weights(table, "update_relative"))
    for label, heat in maps.items():
        for module, values in zip(heat.modules, heat.values, strict=True):
            for layer, value in zip(heat.layers, values, strict=True):
                cell = rows[(rows["label"] == label) & (rows["layer"] == int(layer))
                            & rows["module"].str.endswith(module)]  # fmt: skip
                assert value == pytest.approx(cell["value"].median())
    figure = draw("drift-heatmap", table).figure()
    drawn = [mesh.get_array() for axes in figure.axes for mesh in axes.collections]
    drawn = [np.ravel(array) for array in drawn if array is not None]
    for heat in maps.values():
        assert any(np.array_equal(array, np.ravel(heat.values)) for array in drawn)


def test_spectra_are_the_base_weights(table):
    shown = draw("spectra", table)
    assert [panel.title for panel in shown.panels] == ["down_proj", "o_proj", "q_proj"]
    rows = table[(table["run"] == BASE) & (table["quantity"] == "sigma") & (table["layer"] == 2)]
    q = rows[rows["module"] == "self_attn.q_proj"].sort_values("at")
    series = next(one for one in shown.panels[2].series if one.label == "layer 2")
    assert series.y == tuple(q["value"])
    long = pd.Series(range(1000), index=range(1, 1001))
    assert len(thinned(long)) <= 48
    assert (thinned(long).index[0], thinned(long).index[-1]) == (1, 1000)


def test_the_rate_sweep_keeps_other_settings_apart(tmp_path):
    for rate in (1e-3, 1e-4):
        for rank in (8, 16):
            write_run(tmp_path, f"{rate}-{rank}", "lora", rate=rate, rank=rank, score=rate + rank)
    panel = draw("rate-sweep", collect([tmp_path])).panels[0]
    found = {one.label: (one.x, one.y) for one in panel.series}
    assert found == {
        "lora rank 8": ((1e-4, 1e-3), (8.0001, 8.001)),
        "lora rank 16": ((1e-4, 1e-3), (16.0001, 16.001)),
    }
    ranks = draw("rank-sweep", collect([tmp_path])).panels[0]
    assert {one.label: one.x for one in ranks.series} == {
        "lora 1e-3": (8.0, 16.0), "lora 1e-4": (8.0, 16.0),
    }  # fmt: skip


def test_bands_beyond_the_lines_do_not_flatten_them():
    style = METHOD_COLOURS["lora"]
    series = Series("a", style, (1.0, 2.0), (1.0, 2.0), (-500.0, 1.5), (500.0, 2.5))
    figure = render([Panel("t", "x", "y", (series,))])
    low, high = figure.axes[0].get_ylim()
    assert low < 1
    assert high > 2
    assert high - low < 4


def test_what_no_axis_has_is_counted(table):
    rows = [*weight_rows("lora-0", [0.0, 0.0], 0), *weight_rows("lora-0", [0.1, 0.3], 4),
            *weight_rows("lora-0", [0.2, 0.4], 8)]  # fmt: skip
    shown = draw("nss", weights_table(rows))
    assert "Not drawn: zero or negative values on a logarithmic axis (1)." in shown.text
    low, _ = shown.figure().axes[0].get_ylim()
    assert low > 0.05  # the foot of the band at step 0 does not stretch the axis
    broken = table.copy()
    broken.loc[(broken["quantity"] == "reward") & (broken["step"] == 3), "value"] = math.inf
    assert "Not drawn: values that are not finite (3)." in draw("reward", broken).text


def test_module_names_are_short_but_tell_types_apart():
    paths = ["attn.c_proj", "mlp.c_proj", "mlp.experts.0.up", "mlp.experts.1.up", "lm_head"]
    names = module_types(pd.DataFrame({"module": paths}))
    assert [names[path] for path in paths] == ["attn.c_proj", "mlp.c_proj", "up", "up", "lm_head"]


# Look


@pytest.mark.parametrize("entry", FIGURES, ids=lambda e: e.name)
def test_equal_tables_give_equal_bytes(entry, full, tmp_path):
    first = svg_of(draw(entry.name, full), tmp_path / "a.svg")
    assert svg_of(draw(entry.name, full), tmp_path / "b.svg") == first
    assert b"<text" in first
    assert b"<image" not in first  # no bitmap


def test_another_process_gives_the_same_bytes(study, table, tmp_path):
    names = ("angles", "spectra", "held-out", "drift-heatmap")
    code = (
        "import sys; from pathlib import Path; from orthora.figures.source import collect\n"
        "from orthora.figures.catalogue import draw\n"
        "from orthora.figures.files import save\n"
        "t = collect([Path(sys.argv[1])])\n"
        f"for n in {names!r}: save(draw(n, t), Path(sys.argv[2]) / f'{{n}}.svg')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "11"}
    subprocess.run([sys.executable, "-c", code, study, tmp_path], check=True, env=environment)
    for name in names:
        here = svg_of(draw(name, table), tmp_path / "here.svg")
        assert (tmp_path / f"{name}.svg").read_bytes() == here, name


def test_colours_do_not_depend_on_who_else_is_drawn(table):
    few = table[table["method"].isin(["rlpo", ""])]
    for part in (table, few):
        for name in ("reward", "head-energy", "held-out"):
            for panel in draw(name, part).panels:
                rlpo = next(one for one in panel.series if one.label == "rlpo")
                assert rlpo.style == METHOD_COLOURS["rlpo"]


def test_no_two_groups_look_alike():
    groups = [(f"{m} {s}", m, s) for m in [*METHOD_COLOURS, "dora", "vera", "rlpo+dora"]
              for s in ("1e-3", "1e-4", "adaptive-kl 2e-3 from 1e-3")]  # fmt: skip
    looks = styles_of(groups)
    assert len({*looks.values()}) == len(groups)
    assert {looks[f"{m} 1e-3"].colour for m in ("dora", "vera")} == {DEFAULT_STYLE.colour}
    assert looks["lora 1e-3"] == METHOD_COLOURS["lora"]


def test_colours_have_contrast_on_light_and_dark():
    colours = [style.colour for style in METHOD_COLOURS.values()]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in colours:
        assert contrast(colour, "#ffffff") >= 2.9
        assert contrast(on_dark(colour), DARK) >= 4.5
    for place in range(11):
        assert min(contrast(layer_colour(place / 10), back) for back in ("#ffffff", DARK)) >= 3


def test_pdf_and_png_of_a_paper(table, tmp_path):
    from PIL import Image

    shown = draw("reward", table)
    pdf, png = save(shown, tmp_path / "a.pdf")
    with Image.open(png) as image:
        assert round(image.info["dpi"][0]) == 300
        assert image.width == pytest.approx(3.3 * 300, abs=1)
    first = pdf.read_bytes()
    assert b"/FontFile2" in first  # TrueType, so that text stays text
    assert save(shown, pdf)[0].read_bytes() == first


# Sources


def test_runs_of_other_settings_are_never_pooled_as_seeds(tmp_path):
    write_run(tmp_path, "a", "lora", seed=0)
    write_run(tmp_path, "b", "lora", seed=1)
    write_run(tmp_path, "c", "lora", seed=2, alpha=32.0)
    write_run(tmp_path, "d", "lora", seed=3, threads=2, save_every=9)
    labels = {s.name: s.setting for s in find([tmp_path])[0]}
    assert labels == {"a": "1e-3, alpha 16.0", "b": "1e-3, alpha 16.0", "c": "1e-3, alpha 32.0",
                      "d": "1e-3, alpha 16.0"}  # fmt: skip
    assert [g[0] for g in order_of(collect([tmp_path]))] == [
        "lora 1e-3, alpha 16.0", "lora 1e-3, alpha 32.0",
    ]  # fmt: skip


def test_schedules_and_watches_that_act_are_settings_of_their_own(tmp_path):
    ways = {"constant": {}, "cosine": {"schedule": "cosine"}, "stop": {"watch_action": "stop"},
            "back": {"watch_action": "rollback", "watch_lr_factor": 0.5},
            "further": {"watch_action": "rollback", "watch_lr_factor": 0.25}}  # fmt: skip
    for name, config in ways.items():
        config = {"schedule": "constant", "watch_action": "warn", "watch_lr_factor": 0.5} | config
        write_run(tmp_path, name, "lora", **config)
    known = {source.name: source.setting for source in find([tmp_path])[0]}
    assert known == {
        "constant": "1e-3", "cosine": "1e-3, schedule cosine", "stop": "1e-3, watch_action stop",
        "back": "1e-3, watch_action rollback, watch_lr_factor 0.5",
        "further": "1e-3, watch_action rollback, watch_lr_factor 0.25",
    }  # fmt: skip
    assert {run.folder: run.setting for run in load_runs(tmp_path)} == known
    shown = draw("reward", collect([tmp_path]))
    assert "seeds" not in shown.text
    assert len(shown.panels[0].series) == 5


def test_rules_of_a_watch_matter_only_where_it_acts(tmp_path):
    for name, action, rule in (("a", "warn", "x"), ("b", "warn", "y")):
        write_run(tmp_path, name, "lora", seed=ord(name), watch_action=action, watch=[rule])
    assert {source.setting for source in find([tmp_path])[0]} == {"1e-3"}
    write_run(tmp_path, "c", "lora", watch_action="stop", watch=["x"])
    write_run(tmp_path, "d", "lora", watch_action="stop", watch=["y"])
    settings = {source.name: source.setting for source in find([tmp_path])[0]}
    assert settings["a"] == settings["b"] == "1e-3"
    assert settings["c"] == "1e-3, watch_action stop, watch ['x']"
    assert settings["d"] == "1e-3, watch_action stop, watch ['y']"


def test_runs_of_one_seed_are_never_counted_as_seeds(tmp_path):
    for name, value in (("a", 0.2), ("b", 0.4)):
        write_run(tmp_path, name, "lora", seed=1, score=value)
    found = collect([tmp_path])
    assert [group[0] for group in order_of(found)] == ["lora 1e-3, run a", "lora 1e-3, run b"]
    assert [row[2] for row in draw("scores", found).rows[1:]] == ["1", "1"]
    assert {row[1] for row in draw("best-rates", found).rows} == {"1e-3, run b"}
    assert "seeds" not in draw("reward", found).text


def test_a_rank_sweep_never_pools_unlike_alphas(tmp_path):
    for rank, alpha in ((8, 16), (16, 16), (8, 32)):
        write_run(tmp_path, f"{rank}-{alpha}", "lora", rank=rank, alpha=alpha, score=alpha / 100)
    panel = draw("rank-sweep", collect([tmp_path])).panels[0]
    assert {one.label: one.y for one in panel.series} == {
        "lora 1e-3, alpha 16": (0.16, 0.16), "lora 1e-3, alpha 32": (0.32,),
    }  # fmt: skip


def test_a_run_that_is_given_twice_is_drawn_once(tmp_path):
    write_run(tmp_path, "a", "lora")
    (tmp_path / "link").symlink_to("a")
    assert [s.name for s in find([tmp_path / "a", tmp_path / "link", tmp_path])[0]] == ["a"]


def test_one_setting_is_not_repeated_in_labels_but_in_the_caption(table):
    assert [group[0] for group in order_of(table[table["module"] != ""])] == [
        "dora",
        "lora",
        "rlpo",
    ]
    assert "All runs: 1e-3." in draw("reward", table).text


def test_a_runs_own_table_comes_before_the_folders(tmp_path):
    write_run(tmp_path, "a", "lora")
    write_run(tmp_path, "b", "rlpo")
    write_table(tmp_path / "geometry.parquet", [geometry({"a": "lora", "b": "rlpo"})], {})
    own = run_rows("a", "lora", seed=7, steps=(10,))
    write_table(tmp_path / "a/geometry.parquet", [frame(own)], {})
    found = collect([tmp_path])
    mine = found[(found["run"] == "a") & (found["module"] != "")]
    assert sorted(mine["value"]) == sorted(row.value for row in own)
    only = collect([tmp_path / "b"])
    assert set(only["run"]) == {"b", BASE}


def test_other_tables_are_taken_whole(tmp_path):
    path = write_table(tmp_path / "t.csv", [geometry({"adapter": "pissa"})], {})
    found = collect([], [path])
    assert {group[:2] for group in order_of(found)} == {("adapter", "pissa")}
    assert draw("angles", found).panels[0].series[0].label == "adapter"


def test_one_name_in_two_tables_is_two_runs(tmp_path):
    paths = []
    for folder, method in (("x", "lora"), ("y", "rlpo")):
        (tmp_path / folder).mkdir()
        rows = geometry({"adapter": method, f"only-{folder}": method})
        paths.append(write_table(tmp_path / folder / "t.parquet", [rows], {}))
    found = collect([], paths)
    assert {group[:2] for group in order_of(found)} == {
        ("x/adapter", "lora"), ("y/adapter", "rlpo"), ("only-x", "lora"), ("only-y", "rlpo"),
    }  # fmt: skip
    assert set(collect([], [paths[0], paths[0]])["run"]) == {"adapter", "only-x", BASE}
    same = write_table(tmp_path / "x/u.csv", [geometry({"adapter": "dct"})], {})
    found = collect([], [paths[0], same])
    assert {"t.parquet/adapter", "u.csv/adapter"} < set(found["run"])


def test_a_table_adds_to_a_run_only_what_it_lacks(tmp_path):
    write_run(tmp_path / "runs", "a", "lora")
    (tmp_path / "x").mkdir()
    path = write_table(tmp_path / "x/t.parquet", [geometry({"a": "lora", "lora": "lora"})], {})
    found = collect([tmp_path / "runs"], [path])
    assert [group[0] for group in order_of(found)] == ["lora", "lora (table)"]
    assert set(found.loc[found["label"] == "lora", "run"]) == {"a"}
    assert "angle_left" in set(found.loc[found["run"] == "a", "quantity"])
    own = write_table(tmp_path / "runs/a/geometry.parquet", [geometry({"a": "lora"})], {})
    assert set(collect([tmp_path / "runs"], [own])["run"]) == {"a", BASE}
    found = collect([tmp_path / "runs"], [path])
    assert set(found["run"]) == {"a", "x/a", "lora", BASE}


@pytest.mark.parametrize("place", ["a", "."])
def test_a_table_of_another_run_of_that_name_is_refused(tmp_path, place):
    write_run(tmp_path, "a", "pissa")
    path = write_table(tmp_path / place / "geometry.parquet", [geometry({"a": "lora"})], {})
    with pytest.raises(ValueError, match=r"of another run of that name; measure again: .*/a$") as e:
        collect([tmp_path / "a"])
    assert "'lora'" in str(e.value)
    path = path.rename(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="of another run of that name"):
        collect([tmp_path / "a"], [path])
    write_table(tmp_path / place / "geometry.parquet", [geometry({"a": ""})], {})
    assert draw("angles", collect([tmp_path / "a"])).panels[0].series[0].label == "pissa"


def test_tables_are_found_from_inside_a_run_through_links_and_above(tmp_path, monkeypatch):
    for parent, name, method in (("x", "a", "lora"), ("y", "b", "rlpo")):
        write_run(tmp_path / parent, name, method)
    names = [tmp_path / "x/a", tmp_path / "y/b"]
    write_table(tmp_path / "geometry.parquet", [geometry({"a": "lora", "b": "rlpo"})], {})
    assert len(draw("angles", collect(names)).panels[0].series) == 2
    (tmp_path / "geometry.parquet").rename(tmp_path / "x/geometry.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "x/a")
    assert draw("angles", collect([tmp_path / "link"])).panels[0].series[0].label == "lora"
    monkeypatch.chdir(tmp_path / "x/a")
    found = collect([Path()])
    assert draw("angles", found).panels[0].series[0].label == "lora"
    assert set(found["run"]) == {"a", BASE}
    assert set(collect([Path("../../y/b/.."), Path("..")])["run"]) == {"a", "b", BASE}


def test_a_table_above_tells_runs_of_one_name_apart(tmp_path):
    runs = [write_run(tmp_path / parent, "a", "lora", seed=ord(parent)) for parent in ("x", "y")]
    write_table(tmp_path / "geometry.parquet", [geometry({"a": "lora"})], {})
    assert "angle_left" not in set(collect(runs)["quantity"])  # it does not say whose it is
    write_table(tmp_path / "geometry.parquet", [geometry({"x/a": "lora", "y/a": "lora"})], {})
    found = collect(runs)
    assert set(found[found["module"] != ""]["run"]) == {"x/a", "y/a", BASE}


def test_starts_of_one_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        write_start(tmp_path / parent / "start", "rlpo", 2.0)
    rows = draw("init-cost", collect([tmp_path / "x/start", tmp_path / "y/start"])).rows
    assert [row[1] for row in rows] == ["x/start", "y/start"]


def test_an_unfinished_run_is_named_as_such(tmp_path):
    write_run(tmp_path, "a", "lora")
    (write_run(tmp_path, "b", "lora") / "result.json").unlink()
    words = (
        r"/b holds no result\.json: the run is unfinished; let it finish \(orthora train --resume\)"
    )
    with pytest.raises(ValueError, match=words):
        run_figure(["reward", str(tmp_path / "a"), str(tmp_path / "b")])


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        write_run(tmp_path / parent, "a", "lora", seed=ord(parent))
        write_table(tmp_path / parent / "geometry.parquet", [geometry({"a": "lora"})], {})
    found = collect([tmp_path / "x/a", tmp_path / "y/a"])
    assert set(found["run"]) == {"x/a", "y/a", BASE}
    assert (found[found["module"] != ""].groupby("run").size()[["x/a", "y/a"]] > 0).all()


def test_two_bases_have_no_common_spectrum(tmp_path):
    for name, layers in (("a", 4), ("b", 4)):
        write_run(tmp_path / name, name, "lora")
        rows = geometry({name: "lora"}, layers=layers)
        if name == "b":
            rows.loc[rows["run"] == BASE, "value"] *= 2
        write_table(tmp_path / name / "geometry.parquet", [rows], {})
    found = collect([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="shows one base model, and the runs have several"):
        draw("spectra", found)
    assert draw("angles", found)


def test_folders_that_are_no_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none is not a folder"):
        collect([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        collect([tmp_path])
    (tmp_path / "s").mkdir()
    (tmp_path / "s/orthora.json").write_text('{"seconds": 1, "modules": {}}')
    with pytest.raises(ValueError, match=r"orthora\.json is corrupt: no key 'rank'"):
        collect([tmp_path / "s"])


# Tables and the command


def test_formats_of_a_table_have_the_same_cells(table):
    shown = draw("scores", table)
    cells = [list(shown.head), *map(list, shown.rows)]
    assert pd.read_csv(io.StringIO(shown.csv()), header=None, dtype=str,
                       keep_default_na=False).to_numpy().tolist() == cells  # fmt: skip
    body = [line.strip("| ").split(" | ") for line in shown.markdown().splitlines()[2:-2]]
    assert [[c.strip() for c in row] for row in body][1:] == cells[2:]
    latex = shown.latex()
    assert latex.count(r"\\") == len(cells)
    assert r"0.520 [0.470, 0.580]" in latex
    assert latex_text("a_b & 5 %") == r"a\_b \& 5 \%"


def test_numbers_are_short():
    assert [number(x) for x in (0.123456, 1e-5, 12345.0, NAN, math.inf)] == [
        "0.1235", "1e-5", "1.234e+4", "–", "–",
    ]  # fmt: skip


def test_init_cost_and_first_update(table):
    assert draw("init-cost", table).rows == (("rlpo", "start", "8", "3", "2.0", "1.5"),)
    rows = {row[0]: row for row in draw("first-update", table).rows}
    assert rows["lora"][3] == "1"  # over itself
    assert rows["dora"][3] == number(0.1 / 0.1)


def test_the_geometry_table_has_medians_and_quartiles(table):
    shown = draw("geometry", table)
    column = shown.head.index("head_energy")
    rows = at_end(of_weights(table, "head_energy"))
    for row in shown.rows:
        own = rows[rows["method"] == row[0]]
        median = own.groupby("run")["value"].median().mean()
        low, high = own["value"].quantile([0.25, 0.75])
        assert row[column] == f"{number(median)} [{number(low)}, {number(high)}]"
    assert set(SINGLE) >= set(shown.head[3:])


def test_best_rates_say_what_overlaps(tmp_path):
    for rate, value in ((1e-3, 0.5), (3e-4, 0.56), (1e-4, 0.2)):
        write_run(tmp_path, f"r{rate}", "lora", rate=rate, score=value)
    (row,) = draw("best-rates", collect([tmp_path])).rows
    assert row == ("lora", "3e-4", "0.560 [0.510, 0.620]", "3", "1e-3")


def test_the_command_writes_pdf_and_png(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_figure(["fig3", str(study)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "energy-cumulative.pdf", "energy-cumulative.png",
    ]  # fmt: skip
    assert "Running sum of c_i^2" in capsys.readouterr().out
    run_figure(["table1", str(study), "--out", "t.md"])
    out = capsys.readouterr().out
    assert "0.520 [0.470, 0.580]" in out
    assert "0.520 [0.470, 0.580]" in Path("t.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reword", "x"], "Did you mean 'reward'"),
        (["reward"], "needs runs; give their folders"),
        (["reward", "x", "--out", "a.md"], r"a\.md has none of a figure's endings: \.pdf"),
        (["scores", "x", "--out", "a.pdf"], r"a\.pdf has none of a table's endings: \.md"),
        (["reward", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, words):
    with pytest.raises(ValueError, match=words):
        run_figure(arguments)


def test_the_list_has_every_name(capsys):
    run_figure(["list"])
    out = capsys.readouterr().out
    assert all(entry.name in out for entry in ENTRIES)
    assert "by content" in out


def test_what_a_record_lacks_is_empty_when_nothing_is(table, sweep):
    lacking = [entry.name for entry in ENTRIES if missing(entry, table)]
    assert lacking == ["rate-sweep", "rank-sweep"]  # one rate, one rank
    with pytest.raises(ValueError, match="two values of learning_rate or more"):
        draw("rate-sweep", table)
    text = draw("rate-sweep", sweep).text
    assert "Without rates that follow a measurement: dora adaptive-kl 2e-3 from 1e-3" in text


def test_importing_figures_imports_no_matplotlib():
    code = (
        "import sys, orthora.figures.command, orthora.figures.catalogue\n"
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_style_has_no_marker_where_none_is_asked():
    series = Series("a", Style("#123456", "-", ""), (1.0, 2.0), (1.0, 2.0))
    (line,) = render([Panel("t", "x", "y", (series,))]).axes[0].get_lines()
    assert line.get_marker() == ""
