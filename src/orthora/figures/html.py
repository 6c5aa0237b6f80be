"""Figures and tables as pieces of an accessible page."""

from collections.abc import Iterable, Sequence
from html import escape

from orthora.figures.panels import Drawing, Heat, Panel, gist, numbers_of
from orthora.figures.render import render, swatch
from orthora.figures.style import BASE_STYLE, Style
from orthora.figures.svg import to_svg
from orthora.figures.tables import TextTable


def drawing_html(drawing: Drawing, key: str, listed: Iterable[str] = ()) -> str:
    """A figure of a page: every panel a picture of its own, with its numbers behind a click.

    Args:
        drawing: the figure.
        key: prefix of its ids.
        listed: labels that the page's own legend has.
    """
    styles = dict(styles_in(drawing.panels))
    rest = {label: style for label, style in styles.items() if label not in set(listed)}
    pictures = "\n".join(
        panel_html(panel, f"{key}{place}") for place, panel in enumerate(drawing.panels)
    )
    legend = f'<ul class="legend plain">{items_html(rest, key)}</ul>\n' if rest else ""
    wide = {1: "", 2: " two"}.get(len(drawing.panels), " wide")
    return (
        f'<div class="drawing{wide}"><h3>{escape(drawing.title)}</h3>\n'
        f'<p class="soft prose">{escape(drawing.text)}</p>\n'
        f'{legend}<div class="charts">{pictures}</div></div>'
    )


def styles_in(panels: Sequence[Panel | Heat]) -> Iterable[tuple[str, Style]]:
    """Labels and styles of everything that a legend must name."""
    for panel in panels:
        if isinstance(panel, Panel):
            if not panel.categories:
                yield from ((one.label, one.style) for one in panel.series if one.listed)
            yield from ((name, BASE_STYLE) for _, name in panel.levels)
            if panel.diagonal:
                yield panel.diagonal, BASE_STYLE


def items_html(styles: dict[str, Style], key: str) -> str:
    """Items of a legend."""
    return "".join(
        f"<li>{swatch_svg(style, label, f'{key}legend{place}')}<span>{escape(label)}</span></li>"
        for place, (label, style) in enumerate(styles.items())
    )


def swatch_svg(style: Style, label: str, key: str) -> str:
    """The piece of line of a legend."""
    return to_svg(swatch(style), alt=f"line of {label}", key=key, themed=True)


def panel_html(panel: Panel | Heat, key: str) -> str:
    """One picture with its text alternative and its numbers."""
    figure = render([panel], screen=True, legend=False)
    svg = to_svg(figure, alt=gist(panel), key=f"chart-{key}", themed=True)
    return f"<figure>{svg}{numbers_html(*numbers_of(panel), panel.title)}</figure>"


def numbers_html(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """The numbers of a picture as a table that opens."""
    return f"<details><summary>Numbers</summary>{table_html(head, rows, '', name)}</details>"


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, label: str) -> str:
    """A table that scrolls in a box of its own; the first cell of a row is its heading."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for first, *rest in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{values}</tr>\n'
    words = f"<caption><span>{escape(caption)}</span></caption>\n" if caption else ""
    return (
        f'<div class="box" role="region" aria-label="{escape(label)}" tabindex="0"><table>{words}'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def text_table_html(table: TextTable) -> str:
    """A table of text."""
    return table_html(table.head, table.rows, table.text, table.title)
