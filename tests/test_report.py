"""The report says what the runs show: same numbers everywhere, no claim beyond the intervals."""

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orthora.figures import (
    CHARTS,
    DEFAULT_STYLE,
    METHOD_COLOURS,
    curves,
    points,
    running_mean,
    style_of,
    to_svg,
)
from orthora.findings import findings, rank_correlation
from orthora.report import print_table, write_report
from orthora.runs import COLUMNS, load_runs, summary_rows

METHODS = [
    "lora",
    "lora-gaussian",
    "pissa",
    "milora",
    "olora",
    "olora-qr",
    "olora-tail",
    "rlpo",
    "rlmo",
    "dct",
    "wavelet",
    "geora",
]
DATE = "2026-01-02"
SVG = re.compile(r"<svg.*?</svg>", re.S)


def evaluation(value, half=0.03, **extra):
    return {"pass_at_1": value, "interval": [value - half, value + half], "pass_at_k": {"1": value},
            "problems": 100, "samples": 4, "truncated": 0.0, **extra}  # fmt: skip


def step(number, scale=1.0):
    keys = [quantity for quantity, *_ in CHARTS]
    return {"step": number, **{key: scale * (1 + math.sin(number + i) / 3)
                               for i, key in enumerate(keys)}}  # fmt: skip


def make(root, method, value=0.4, rate=1e-5, *, seed=0, kl=1e-3, base=0.36, half=0.03, steps=30,
         metrics=None, **extra):  # fmt: skip
    folder = root / f"{method}-{rate:g}-{seed}"
    folder.mkdir(parents=True)
    result = {"status": "finished", "reason": None, "method": method, "learning_rate": rate,
              "seed": seed, "rank": 16, "alpha": 32.0, "steps": steps, "seconds": 1234.5,
              "final": {}, "peak_grad_norm": 0.75, "mean_kl_update": kl, "kl_base": 0.02,
              "evaluation": None if value is None else evaluation(value, half),
              "base_evaluation": None if base is None else evaluation(base, half)}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | extra))
    rows = [step(n, kl * 1e3) for n in range(1, steps + 1)] if metrics is None else metrics
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text(
        f'title = "a <b> & c"\n[train]\nlearning_rate = {rate}\nsteps = {steps}\n'
    )
    (folder / "environment.json").write_text(json.dumps({"torch": "2.8", "cpu": "some <cpu>"}))
    return folder


def fail(root, method="olora", **extra):
    return make(root, method, None, metrics=[], status="failed", reason="no <svd> & more",
                mean_kl_update=None, kl_base=None, peak_grad_norm=None, **extra)  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """Seven runs: two learning rates, a failed one, a NaN, missing values."""
    root = tmp_path / "runs"
    make(root, "lora", 0.44, kl=2e-4)
    make(root, "rlpo", 0.45, kl=5e-4)
    make(root, "milora", 0.35, kl=4e-3)
    make(root, "milora", 0.43, 2e-6, kl=4e-4)
    broken = [step(n) | {"grad_norm": math.nan if n == 5 else 1.0} for n in range(1, 31)]
    make(root, "pissa", 0.20, kl=3e-2, metrics=broken)
    sparse = [{"step": n, "reward": None if n % 2 else 0.5, "kl_update_k3": 0.0} for n in (1, 2, 3)]
    make(root, "rlmo", 0.42, kl=3e-4, metrics=sparse)
    fail(root)
    (root / "notes").mkdir()
    return root


def page_of(root):
    out = write_report(root, root.parent / "page.html", title="A <study> & more", date=DATE)
    return out.read_text(encoding="utf-8")


def joined(root):
    return " ".join(findings(load_runs(root)))


class Table(HTMLParser):
    """Collects the cells of the first table's body, and checks that tags balance."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.rows, self.stack, self.done = [], [], False

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.stack.append(tag)
        if tag == "tr" and "tbody" in self.stack and not self.done:
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        self.done = self.done or tag == "tbody"

    def handle_data(self, data):
        if "tbody" in self.stack and self.stack[-1] in ("td", "th") and not self.done:
            self.rows[-1].append(data)


# Loading


def test_runs_load_in_a_stable_order_with_unique_labels(study):
    labels = [run.label for run in load_runs(study)]
    assert labels == ["lora 1e-5", "milora 1e-5", "milora 2e-6", "olora 1e-5", "pissa 1e-5",
                      "rlmo 1e-5", "rlpo 1e-5"]  # fmt: skip


def test_labels_tell_seeds_apart_and_then_folders(tmp_path):
    make(tmp_path, "lora", seed=1)
    make(tmp_path, "lora", seed=2)
    shutil.copytree(tmp_path / "lora-1e-05-2", tmp_path / "again")
    assert [run.label for run in load_runs(tmp_path)] == [
        "lora 1e-5 seed 1", "lora 1e-5 seed 2 (again)", "lora 1e-5 seed 2 (lora-1e-05-2)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", '{"status": "done"}'),
        ("result.json", '{"status": "finished"}'),
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "rew'),
        ("metrics.jsonl", '{"reward": 1.0}'),
        ("metrics.jsonl", '{"step": 1, "reward": "high"}'),
        ("metrics.jsonl", '{"step": NaN}'),
        ("config.toml", "a = "),
        ("environment.json", "nonsense"),
        ("environment.json", "[1]"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, content):
    folder = make(tmp_path, "lora")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(folder / name)) + " is corrupt.*repair"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"mean_kl_update": "small"},
        {"seed": None},
        {"learning_rate": None},
        {"evaluation": evaluation(0.4) | {"interval": [0.1]}},
        {"evaluation": {"interval": [0.1, 0.2]}},
        {"evaluation": [0.4]},
    ],
)
def test_a_result_of_the_wrong_shape_is_named(tmp_path, change):
    folder = make(tmp_path, "lora")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | change))
    with pytest.raises(ValueError, match=r"result\.json is corrupt"):
        load_runs(tmp_path)


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        load_runs(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no \*/result\.json"):
        write_report(tmp_path, tmp_path / "page.html", title="t")
    assert list(tmp_path.iterdir()) == []


# Numbers


def test_missing_numbers_are_none_and_said(study):
    row = next(row for row in summary_rows(load_runs(study)) if row.run.method == "olora")
    assert (row.pass_at_1, row.interval, row.kl_update) == (None, None, None)
    cells = {name: cell(row) for name, cell in COLUMNS}
    assert cells["Held-out pass@1"] == cells["KL per update"] == "not recorded"
    assert cells["Status"] == "failed"


def test_change_is_clear_only_when_intervals_do_not_overlap(tmp_path):
    make(tmp_path, "dct", 0.50, base=0.40, half=0.05)  # they touch at 0.45
    make(tmp_path, "lora", 0.52, base=0.40, half=0.05)
    make(tmp_path, "rlpo", 0.28, base=0.40, half=0.05)
    make(tmp_path, "rlmo", 0.28, base=None)
    change = dict(COLUMNS)["Change vs base"]
    texts = [change(row) for row in summary_rows(load_runs(tmp_path))]
    assert texts == ["+0.100 (not clear)", "+0.120 (clear)", "not recorded", "-0.120 (clear)"]


def test_page_and_terminal_show_the_summary_numbers(study, capsys, monkeypatch):
    runs = load_runs(study)
    expected = [[cell(row) for _, cell in COLUMNS] for row in summary_rows(runs)]
    parser = Table()
    parser.feed(page_of(study))
    assert parser.stack == []
    assert parser.rows == expected
    monkeypatch.setenv("COLUMNS", "220")
    print_table(runs)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.strip("│").split("│")] for line in lines] == expected


def test_rank_correlation_against_hand_counts():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    # ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5)
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


# Findings


def test_no_superiority_when_intervals_overlap(tmp_path):
    make(tmp_path, "lora", 0.44)
    make(tmp_path, "rlpo", 0.45)
    make(tmp_path, "pissa", 0.20)
    text = joined(tmp_path)
    assert "3 methods share, the highest held-out pass@1 is 0.450 (rlpo)." in text
    assert "overlaps with lora: no method is shown to be best. It lies above pissa." in text
    assert "all the others" not in text
    assert not re.search(r"outperform|better|superior|wins|significant", text)


def test_separate_intervals_are_said(tmp_path):
    make(tmp_path, "lora", 0.44)
    make(tmp_path, "rlpo", 0.55)
    text = joined(tmp_path)
    assert "0.550 (rlpo). Its interval lies above the intervals of all the others." in text
    assert "no method is shown to be best" not in text


def test_a_tie_names_both_and_no_best(tmp_path):
    make(tmp_path, "lora", 0.44)
    make(tmp_path, "rlpo", 0.44)
    assert "0.440 (lora and rlpo). Its interval overlaps with rlpo: no method" in joined(tmp_path)


def test_no_shared_rate_means_no_comparison(tmp_path):
    make(tmp_path, "lora", 0.44, 1e-5)
    make(tmp_path, "rlpo", 0.55, 1e-6)
    text = joined(tmp_path)
    assert "No two methods finished at the same learning rate" in text
    assert "highest" not in text


def test_seeds_are_pooled_before_methods_are_compared(tmp_path):
    for seed, value in enumerate((0.70, 0.40)):  # one lucky seed
        make(tmp_path, "rlpo", value, seed=seed)
        make(tmp_path, "lora", 0.45, seed=seed)
    text = joined(tmp_path)
    assert "the highest held-out pass@1 is 0.550 (rlpo)" in text
    assert "overlaps with lora" in text
    assert "At most 2 seeds per setting" in text


def test_lower_rate_base_and_seed_sentences(study):
    text = joined(study)
    assert (
        "milora: pass@1 0.350 at 1e-5 and 0.430 at 2e-6, +0.080 at the lower rate (clear)" in text
    )
    assert "The base model's held-out pass@1 is 0.360 [0.330, 0.390]." in text
    assert (
        "Below the base model: milora 1e-5 -0.010 (not clear) and pissa 1e-5 -0.160 (clear)."
        in (text)
    )
    assert "One seed per setting: differences inside the intervals tell nothing" in text


def test_another_schedule_at_the_same_rate_is_no_lower_rate(tmp_path):
    for method in ("lora", "pissa"):
        make(tmp_path, method, 0.5)
    folder = make(tmp_path, "pissa", 0.6, seed=9)
    (folder / "config.toml").write_text('schedule = "cosine"\n')
    text = joined(tmp_path)
    assert "pissa: pass@1 0.500 at 1e-5 and 0.600 at 1e-5, schedule cosine, +0.100 with" in text
    assert "with the other setting" in text
    assert "at the lower rate" not in text


def test_adaptive_runs_are_a_setting_of_their_own(tmp_path):
    """They begin at a fixed run's learning rate, and are never pooled with it."""
    make(tmp_path, "lora", 0.5)
    make(tmp_path, "pissa", 0.2)
    folder = make(tmp_path, "pissa", 0.6, seed=9)
    (folder / "config.toml").write_text('schedule = "adaptive-kl"\nkl_target = 0.002\n')
    labels = [run.label for run in load_runs(tmp_path)]
    assert labels == ["lora 1e-5", "pissa 1e-5", "pissa adaptive-kl 2e-3 from 1e-5"]
    text = joined(tmp_path)
    assert "At the learning rate 1e-5, which 2 methods share" in text
    assert (
        "pissa: pass@1 0.200 at 1e-5 and 0.600 at adaptive-kl 2e-3 from 1e-5, +0.400 with "
        "adaptive-kl (clear)." in text
    )
    assert "One seed per setting" in text


def test_incidents_are_said_and_left_out_of_comparisons(study):
    make(study, "dct", 0.99, status="stopped", reason="by hand.")
    text = joined(study)
    assert "olora 1e-5 failed: no <svd> & more." in text
    assert "dct 1e-5 stopped: by hand." in text
    assert "pissa 1e-5 has 1 recorded numbers that are not finite." in text
    assert "Comparisons use the 6 of 8 runs" in text
    assert "0.990" not in text


def test_correlation_is_exploratory_and_states_n(tmp_path):
    for i, method in enumerate(("lora", "rlpo", "rlmo")):
        make(tmp_path, method, 0.5 - i / 10, kl=10.0**-i)
    assert "not computed: n = 3 runs is too few" in joined(tmp_path)
    make(tmp_path, "dct", 0.1, kl=1e-5)
    text = joined(tmp_path)
    assert "Exploratory: the rank correlation (Spearman)" in text
    assert "is +1.00, n = 4 runs" in text
    assert "does not show cause" in text


def test_correlation_leaves_out_infinite_kl_and_constant_sides(tmp_path):
    for method in ("lora", "rlpo", "rlmo", "dct"):
        make(tmp_path, method, 0.4, kl=1e-3)
    make(tmp_path, "pissa", 0.3, kl=math.inf, metrics=[step(1)])
    text = joined(tmp_path)
    assert "is not defined: one side does not vary" in text
    assert "pissa 1e-5 has 1 recorded numbers that are not finite" in text


def test_unequal_settings_are_said(tmp_path):
    make(tmp_path, "lora", rank=16)
    make(tmp_path, "rlpo", rank=64, evaluation=evaluation(0.4, problems=50))
    assert "The compared runs differ in rank and evaluation problems" in joined(tmp_path)


def test_only_failed_runs_make_no_comparison(tmp_path):
    fail(tmp_path)
    text = joined(tmp_path)
    assert "Comparisons use the 0 of 1 runs" in text
    assert "pass@1" not in text
    assert "No run recorded a training step." in page_of(tmp_path)


# Page


def test_page_is_self_contained_and_escaped(study):
    page = page_of(study)
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|@import|<script|<link|<img|src=", bare)
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    for raw in ("a <b>", "some <cpu>", "<svd>", "A <study>"):
        assert raw not in page
        assert html.escape(raw) in page
    assert '<meta name="viewport"' in page
    assert f'<time datetime="{DATE}">' in page


def test_every_svg_is_named_parses_and_ids_are_unique(study):
    page = page_of(study)
    curves = page.split("<h2>Training curves</h2>")[1].split("</section>")[0]
    assert len(SVG.findall(curves)) == len(CHARTS) + 6  # and a legend of the runs with steps
    pictures = [ET.fromstring(text) for text in SVG.findall(page)]
    for root in pictures:
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert root[0].tag.endswith("title")
        assert not root.findall(".//{*}metadata")
        ids = {element.get("id") for element in root.iter()}
        references = re.findall(
            r'(?:href="#|url\(#)([^")]+)', ET.tostring(root, encoding="unicode")
        )
        assert set(references) <= ids
        for style in root.iter("{*}style"):  # rules must not reach beyond their own picture
            assert all(rule.startswith("#") for rule in (style.text or "").split("}")[:-1])
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_chart_text_is_text_and_the_alternative_has_the_numbers(study):
    chart = next(text for text in SVG.findall(page_of(study)) if "Response length" in text)
    assert ">training step</text>" in chart
    last = step(30, 0.2)["length"]
    assert f"lora 1e-5 {last:.3g}; milora 1e-5" in chart
    assert "rlmo 1e-5 not recorded" in chart


def test_values_that_cannot_be_drawn_are_counted(study):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page_of(study))
    assert "3 values not drawn: not finite, zero or negative." in captions[2]  # KL, zeros
    assert "1 values not drawn" in captions[4]  # gradient norm, NaN
    assert all("not drawn" not in captions[i] for i in (0, 1, 3, 5, 6))


def test_same_runs_and_date_give_the_same_bytes(study):
    first = page_of(study)
    assert page_of(study) == first
    code = (
        "import sys; from orthora.report import write_report; "
        "write_report(sys.argv[1], sys.argv[2], title='A <study> & more', date=sys.argv[3])"
    )
    out = study.parent / "other.html"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, study, out, DATE], check=True, env=environment)
    assert out.read_text(encoding="utf-8") == first


def test_a_failed_write_leaves_the_old_page(study, monkeypatch):
    out = study.parent / "page.html"
    out.write_text("old")

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        page_of(study)
    assert out.read_text() == "old"
    assert [path.name for path in study.parent.iterdir() if path.is_file()] == ["page.html"]


def test_one_run_with_one_step_and_no_optional_files(tmp_path):
    folder = make(tmp_path / "runs", "a new method", 0.4, metrics=[step(1)])
    (folder / "config.toml").unlink()
    (folder / "environment.json").unlink()
    page = page_of(tmp_path / "runs")
    assert "a new method 1e-5" in page
    assert page.count("Not recorded.") == 3  # shared settings, and the run's two tables
    assert "Each value." in page


# Figures


def test_every_method_has_its_own_look():
    assert set(METHODS) == set(METHOD_COLOURS)
    assert len({style.colour for style in METHOD_COLOURS.values()}) == len(METHODS)
    assert len({style.marker for style in METHOD_COLOURS.values()}) == len(METHODS)


def test_colour_is_the_method_and_line_is_the_rate(study):
    runs = load_runs(study)
    styles = {run.label: style_of(run, runs) for run in runs}
    high, low = styles["milora 1e-5"], styles["milora 2e-6"]
    assert (high.colour, high.marker) == (low.colour, low.marker)
    assert high.line == styles["lora 1e-5"].line != low.line


def test_an_unknown_method_gets_the_default(tmp_path):
    make(tmp_path, "novel")
    runs = load_runs(tmp_path)
    assert style_of(runs[0], runs) == DEFAULT_STYLE


def test_running_mean_keeps_gaps_and_wants_a_window():
    values = running_mean([1.0, 3.0, math.nan, 5.0], 2)
    assert values[:2] == [1.0, 2.0]
    assert math.isnan(values[2])
    assert values[3] == 5.0
    with pytest.raises(ValueError, match="window 0 is smaller than 1"):
        running_mean([1.0], 0)


def test_missing_values_are_passed_over_and_text_is_not_markup(study):
    runs = load_runs(study)
    sparse = next(run for run in runs if run.method == "rlmo")
    assert points(sparse, "reward") == ([2.0], [0.5])
    figure = curves(runs, "reward", title="$a$ <b>", ylabel="y")
    assert len(figure.axes[0].lines) == 6
    svg = to_svg(figure)
    assert to_svg(figure) == svg
    assert "$a$ &lt;b&gt;" in svg
    assert "lora 1e-5" in "".join(ET.fromstring(svg).itertext())  # its own legend


def test_a_quantity_nobody_recorded_says_so(study):
    svg = to_svg(curves(load_runs(study), "nothing", title="t", ylabel="y", log=True))
    assert "no values recorded" in svg


def test_importing_the_modules_does_not_import_matplotlib():
    code = "import sys, orthora.report; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Browser

PROBE = """<script>addEventListener("load", () => {
const sizes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
document.body.dataset.shown = sizes.filter(s => s.width > 20 && s.height > 8).length;
document.body.dataset.over = document.documentElement.scrollWidth - innerWidth;
})</script>"""


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_every_chart_without_errors(study, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH")
    page = page_of(study)
    probe = study.parent / "probe.html"
    probe.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    done = subprocess.run(
        [browser, *flags.split(), "--disable-background-networking", "--disable-component-update",
         "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom",
         f"--user-data-dir={study.parent / 'profile'}", probe.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert f'data-shown="{len(SVG.findall(page))}"' in done.stdout
    assert re.search(r'data-over="(0|-\d+)"', done.stdout)  # nothing scrolls sideways


def test_a_metric_that_was_no_number_is_missing_in_its_row_and_no_damage(tmp_path):
    rows = [step(n, 1e-3) for n in range(1, 4)]
    rows[1] |= {"kl_update_k3": None, "entropy": None, "not_finite": ["kl_update_k3", "entropy"]}
    make(tmp_path, "lora", 0.5, metrics=rows)
    (view,) = load_runs(tmp_path)
    assert view.metrics[1]["kl_update_k3"] is None
    assert all("not_finite" not in row for row in view.metrics)
    write_report(tmp_path, tmp_path / "page.html", title="t", date=DATE)
