"""The page's geometry and scores: the tables' numbers, readable by everyone, in every browser."""

import html
import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from figure_data import ALL_MODULES, geometry, write_run

from orthora.figures import catalogue
from orthora.figures.catalogue import draw
from orthora.figures.panels import numbers_of
from orthora.figures.source import collect
from orthora.figures.style import INK
from orthora.figures.svg import DARK, contrast, on_dark
from orthora.report import measured, write_report
from orthora.report import page as report_page
from orthora.report.style import CSS
from orthora.table import write_table

RUNS = {"lora-0": "lora", "rlpo-0": "rlpo", "dora-0": "dora"}
SVG = re.compile(r"<svg.*?</svg>", re.S)
LIMIT = 5_000_000


def make(root, runs, *, steps=10, measured=(0, 5, 10), **how):
    for name, method in runs.items():
        write_run(root, name, method, seed=int(name[-1]), steps=steps)
    write_table(root / "geometry.parquet", [geometry(runs, steps=measured, **how)], {})


def page_of(root):
    out = write_report(root, root.parent / "page.html", title="A study", date="2026-01-02")
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "runs"
    make(root, RUNS)
    return root


@pytest.fixture(scope="module")
def page(root):
    return page_of(root)


class Page(HTMLParser):
    """Headings, figures and tables of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.tables, self.stack, self.figures = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.stack.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append([tag, ""])
        if tag == "figure":
            self.figures.append({"svg": None, "summary": False, "rows": 0, "focus": False})
        if self.figures and "figure" in self.stack:
            figure = self.figures[-1]
            figure["svg"] = dict(attrs) if tag == "svg" else figure["svg"]
            figure["summary"] |= tag == "summary"
            figure["rows"] += tag == "tr"
            figure["focus"] |= dict(attrs).get("tabindex") == "0"
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.stack and re.fullmatch(r"h\d", self.stack[-1]):
            self.headings[-1][1] += data


def test_the_page_has_every_section_of_geometry(page):
    names = [text for _, text in Page(page).headings]
    for name in ("Scores", "Geometry", "Spectra of W", "Cumulative energy", "Principal angles",
                 "Energy in W's first and last directions", "Subspace similarity",
                 "Shift of singular values", "Drift by layer", "Norm of the start"):  # fmt: skip
        assert name in names
    assert "Not drawn" not in names


def test_headings_never_skip_a_level(page):
    levels = [int(tag[1]) for tag, _ in Page(page).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_every_picture_has_its_gist_and_its_numbers(page):
    figures = Page(page).figures
    assert len(figures) > 20
    for figure in figures:
        assert figure["svg"]["role"] == "img"
        assert re.search(r"\d", figure["svg"]["aria-label"])
        assert figure["summary"]
        assert figure["focus"]
        assert figure["rows"] > 1


@pytest.mark.parametrize(
    "name", ["spectra", "energy-cumulative", "head-energy", "angles", "drift-heatmap", "held-out"]
)
def test_numbers_on_the_page_equal_the_tables(page, root, name):
    tables = Page(page).tables
    for panel in draw(name, collect([root])).panels:
        head, rows = numbers_of(panel)
        assert [head, *rows] in tables


@pytest.mark.parametrize("name", ["geometry", "start-norms", "scores"])
def test_tables_on_the_page_equal_the_commands(page, root, name):
    shown = draw(name, collect([root]))
    assert [list(shown.head), *map(list, shown.rows)] in Page(page).tables


def test_without_a_table_one_line_says_how_to_measure(root, tmp_path):
    shutil.copytree(root, tmp_path / "runs", ignore=shutil.ignore_patterns("*.parquet"))
    text = page_of(tmp_path / "runs").split("<h2>Geometry</h2>")[1].split("</section>")[0]
    assert f"orthora measure {tmp_path / 'runs'}" in text
    assert "<svg" not in text


def test_what_is_missing_is_named_with_its_command(root, tmp_path):
    shutil.copytree(root, tmp_path / "runs")
    table = geometry(RUNS, steps=(10,))
    table = table[table["quantity"] != "angle_left"]
    write_table(tmp_path / "runs/geometry.parquet", [table], {})
    text = html.unescape(page_of(tmp_path / "runs"))
    rest = text.split("<h3>Not drawn</h3>")[1].split("</section>")[0]
    assert rest.count("<li>") == 2
    assert "figure 'angles' needs angle_left" in rest
    assert "'subspace-similarity' needs subspace_similarity at 2 steps or more" in rest


def test_a_zero_update_leaves_the_page_whole(root, tmp_path):
    shutil.copytree(root, tmp_path / "runs")
    table = geometry(RUNS)
    table.loc[table["quantity"].str.startswith("update_"), "value"] = 0.0
    write_table(tmp_path / "runs/geometry.parquet", [table], {})
    text = html.unescape(page_of(tmp_path / "runs"))
    assert "The update is zero: dora, lora, rlpo." in text
    rest = text.split("<h3>Not drawn</h3>")[1].split("</section>")[0]
    assert "'head-energy' needs head_energy" in rest
    assert "the update is zero in every run" in rest
    assert "measure it" not in rest


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("angles", "figure 'angles' can't be drawn: RuntimeError no <pen>"),
        ("held-out", "figure 'held-out' can't be drawn: RuntimeError no <pen>"),
        ("reward", "Reward can't be drawn: RuntimeError no <pen>"),
    ],
)
def test_a_figure_that_fails_is_named_and_the_page_goes_on(root, page, monkeypatch, name, words):
    def fail(*_, **__):
        raise RuntimeError("no <pen>\nat all")

    def unless(chart):
        return lambda runs, quantity, *more: (fail if quantity == name else chart)(
            runs, quantity, *more
        )

    entry = measured._NAMED[name]
    monkeypatch.setitem(measured._NAMED, name, replace(entry, draw=fail))
    monkeypatch.setattr(catalogue, "_NAMES", {**catalogue._NAMES, name: replace(entry, draw=fail)})
    monkeypatch.setattr(report_page, "chart_html", unless(report_page.chart_html))
    text = page_of(root)
    assert html.escape(words) in text
    assert "<pen>" not in text
    assert len(Page(page).headings) - 2 <= len(Page(text).headings)
    assert text.count("<svg") < page.count("<svg")


def test_a_damaged_table_is_an_error(root, tmp_path):
    shutil.copytree(root, tmp_path / "runs")
    (tmp_path / "runs/geometry.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"geometry\.parquet can't be read"):
        page_of(tmp_path / "runs")


def test_the_page_is_the_same_twice_and_needs_no_network(page, root):
    assert page_of(root) == page
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|@import|<script|<link|<img", bare)
    assert all(r.startswith("#") for r in re.findall(r'(?:href|src)="([^"]*)"', bare))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_every_colour_variable_of_a_chart_is_defined_light_and_dark(page):
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})\)", page))
    light, dark = page.split("@media screen and (prefers-color-scheme:dark)")[:2]
    assert used
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark.split("</style>")[0]


def test_text_has_contrast_on_light_and_dark():
    light = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", CSS.split("@media")[0]))
    dark = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", CSS.split("@media")[1]))
    for colours in (light, dark):
        full = {k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for k, v in
                colours.items()}  # fmt: skip
        for ink in ("ink", "soft"):
            for back in ("back", "card"):
                assert contrast(full[ink], full[back]) >= 4.5
    assert dark["card"] == DARK  # the charts' dark colours were chosen against it
    assert contrast(on_dark(INK), DARK) >= 7


def test_long_logs_are_thinned_and_say_so(tmp_path):
    write_run(tmp_path / "runs", "lora-0", "lora", steps=1024)
    text = page_of(tmp_path / "runs")
    assert "One value in 4 is drawn." in text
    assert len(text) < LIMIT / 10 + 300_000


@pytest.mark.slow
def test_ten_runs_of_a_real_model_stay_below_five_megabytes(tmp_path):
    runs = {f"{m}-{s}": m for m in ("lora", "rlpo", "rlmo", "pissa", "milora") for s in (0, 1)}
    make(tmp_path / "runs", runs, steps=1024, layers=28, modules=ALL_MODULES,
         measured=range(10))  # fmt: skip
    size = len(page_of(tmp_path / "runs").encode())
    print(size)
    assert size < LIMIT


# Browser

PROBE = """<script>addEventListener("load", () => {
const of = (s) => [...document.querySelectorAll(s)];
const sizes = of("svg").map(s => s.getBoundingClientRect());
const lines = of("figure svg path").filter(p => { const b = p.getBoundingClientRect();
  return b.width > 40 && b.height > 1; });
for (const d of of("details")) d.open = true;
const tables = of("figure .box").filter(b => b.getBoundingClientRect().height > 20);
for (const b of tables) b.focus();
const body = document.body;
body.dataset.shown = sizes.filter(s => s.width > 20 && s.height > 8).length;
body.dataset.lines = lines.length;
body.dataset.tables = tables.length;
body.dataset.focus = document.activeElement === tables.at(-1);
body.dataset.over = document.documentElement.scrollWidth - innerWidth;
body.dataset.width = innerWidth;
body.dataset.ink = getComputedStyle(document.querySelector("figure svg text")).fill;
})</script>"""
NARROW = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
DARKLY = "--blink-settings=preferredColorScheme=0"


def browse(page, folder, width, *more):
    """What headless Chromium made of the page: its attributes, and its log."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH")
    probe = folder / "probe.html"
    probe.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    shell = folder / "shell.html"  # a frame, as the window itself is never narrower than 500
    shell.write_text(
        f'<iframe src="probe.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() =>"
        "Object.assign(document.body.dataset, frames[0].document.body.dataset), 300))"
        "</script>"
    )
    done = subprocess.run(
        [browser, *NARROW.split(), *more, "--disable-background-networking",
         "--disable-component-update", "--allow-file-access-from-files", "--window-size=1400,1000",
         "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", shell.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout)), done.stderr


@pytest.mark.parametrize(("width", "more"), [(1280, ()), (400, ()), (1280, (DARKLY,))])
def test_a_browser_draws_everything_without_errors(page, tmp_path, width, more):
    seen, log = browse(page, tmp_path, width, *more)
    assert "CONSOLE" not in log
    assert seen["width"] == str(width)
    figures = len(Page(page).figures)
    assert seen["shown"] == str(len(SVG.findall(page)))
    assert int(seen["lines"]) > 2 * figures
    assert seen["tables"] == str(figures)
    assert seen["focus"] == "true"
    assert int(seen["over"]) <= 0  # nothing scrolls sideways
    ink = tuple(int(on_dark(INK)[i : i + 2], 16) for i in (1, 3, 5)) if more else (48, 52, 59)
    assert seen["ink"] == f"rgb{ink}"
