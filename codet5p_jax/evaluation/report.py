"""A report as one self-contained HTML file: no scripts, nothing from the network, all text escaped.

The page is laid out from plain data (`Report`); what goes into it is the caller's choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from codet5p_jax.evaluation.charts import Chart, format_number, svg
from codet5p_jax.files import new_file

Cell = str | int | float | None

COLOURS = 8  # of lines, in the style sheet


@dataclass(frozen=True)
class Figure:
    """A number worth a tile: value, what it is, and what to compare it with."""

    value: Cell
    label: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Attributes:
      bar: the column to draw as bars as well, scaled to its maximum.
      decimals: of every float.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    bar: int | None = None
    decimals: int = 3


@dataclass(frozen=True)
class Sample:
    """What the model was given, what it wrote, and what the author had written."""

    title: str
    given: str
    generated: str
    original: str


@dataclass(frozen=True)
class Report:
    """The page, from top to bottom."""

    title: str
    lead: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    charts: Mapping[str, Sequence[Chart]] = field(default_factory=dict)  # heading -> charts
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # heading -> samples
    details: Mapping[str, str] = field(default_factory=dict)  # heading -> preformatted text


def write(report: Report, path: Path) -> None:
    """Writes the page; the file appears at once."""
    with new_file(path) as partial:
        # What cannot be encoded (a lone surrogate in generated text) becomes a question mark.
        partial.write_bytes(render(report).encode("utf-8", "replace"))


def render(report: Report) -> str:
    """The page as HTML."""
    body = [
        f"<header><h1>{_text(report.title)}</h1><p>{_text(report.lead)}</p></header>",
        _figures(report.figures),
        *[_table(table) for table in report.tables],
        *[_charts(heading, charts) for heading, charts in report.charts.items()],
        *[_samples(heading, samples) for heading, samples in report.samples.items()],
        *[_detail(heading, text) for heading, text in report.details.items()],
    ]
    return _PAGE.format(title=_text(report.title), style=_STYLE, body="\n".join(body))


def _text(value: Cell) -> str:
    if value is None:
        return "n/a"
    return format_number(value) if isinstance(value, int | float) else escape(value)


def _figures(figures: Sequence[Figure]) -> str:
    tiles = [
        f'<div class="tile"><b>{_text(f.value)}</b><span>{_text(f.label)}</span>'
        f"<small>{_text(f.note)}</small></div>"
        for f in figures
    ]
    return f'<section class="tiles">{"".join(tiles)}</section>' if tiles else ""


def _table(table: Table) -> str:
    numbers = [] if table.bar is None else [float(row[table.bar] or 0) for row in table.rows]
    largest = max(numbers, default=0) or 1.0

    def cell(row: Sequence[Cell], column: int) -> str:
        value = row[column]
        text = f"{value:.{table.decimals}f}" if isinstance(value, float) else _text(value)
        return f'<td class="{"number" if column else ""}">{text}</td>'

    def bar(row: Sequence[Cell]) -> str:
        if table.bar is None:
            return ""
        share = 100 * float(row[table.bar] or 0) / largest
        return f'<td class="bar"><i style="width:{share:.1f}%"></i></td>'

    head = "".join(
        f'<th class="{"number" if column else ""}">{_text(name)}</th>'
        for column, name in enumerate(table.header)
    ) + ("" if table.bar is None else '<th class="bar"></th>')
    rows = "".join(
        f"<tr>{''.join(cell(row, column) for column in range(len(row)))}{bar(row)}</tr>"
        for row in table.rows
    )
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    return (
        f'<section><h2>{_text(table.title)}</h2>{note}<div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _charts(heading: str, charts: Sequence[Chart]) -> str:
    return (
        f'<section><h2>{_text(heading)}</h2><div class="charts">'
        f"{''.join(_chart(chart) for chart in charts)}</div></section>"
    )


def _chart(chart: Chart) -> str:
    keys = "".join(
        f'<span class="key s{number}">{_text(line.label)}</span>'
        for number, line in enumerate(chart.series, start=1)
        if line.points
    )
    legend = f'<div class="keys">{keys}</div>' if len(chart.series) > 1 else ""
    return f"<figure><figcaption>{_text(chart.title)}{legend}</figcaption>{svg(chart)}</figure>"


def _samples(heading: str, samples: Sequence[Sample]) -> str:
    cards = [
        f'<article><h3>{_text(s.title)}</h3><div class="sample">'
        f'<div class="given"><h4>given</h4><pre>{_text(s.given)}</pre></div>'
        f"<div><h4>generated</h4><pre>{_text(s.generated)}</pre></div>"
        f"<div><h4>original</h4><pre>{_text(s.original)}</pre></div></div></article>"
        for s in samples
    ]
    return f"<section><h2>{_text(heading)}</h2>{''.join(cards)}</section>"


def _detail(heading: str, text: str) -> str:
    return f"<details><summary>{_text(heading)}</summary><pre>{_text(text)}</pre></details>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1c1e21; --soft: #6a7077;
  --rule: #e3e4e1; --s1: #2f6fd6; --s2: #d9722b; --s3: #2c9a6b; --s4: #8a5fc7;
  --s5: #c23b5e; --s6: #2698ad; --s7: #97821a; --s8: #7a7f87; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1d2026; --ink: #e6e7e9; --soft: #9aa1aa; --rule: #32363e;
    --s1: #6ea2f5; --s2: #f09a5c; --s3: #58c596; --s4: #b594ea;
    --s5: #ef7f9b; --s6: #6fc7d8; --s7: #cdb75a; --s8: #a7adb5; } }
.s1 { --own: var(--s1); } .s2 { --own: var(--s2); } .s3 { --own: var(--s3); }
.s4 { --own: var(--s4); } .s5 { --own: var(--s5); } .s6 { --own: var(--s6); }
.s7 { --own: var(--s7); } .s8 { --own: var(--s8); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 40px 0 10px; }
h3 { font-size: 14px; margin: 0 0 10px; font-family: ui-monospace, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
h4 { font-size: 12px; margin: 0 0 4px; color: var(--soft); font-weight: 500; }
p { margin: 0 0 12px; color: var(--soft); max-width: 75ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px;
  margin-top: 24px; }
.tile, figure, article, .scroll, details { background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; }
.tile { padding: 14px 16px; display: flex; flex-direction: column; }
.tile b { font-size: 24px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 8px 14px; text-align: left; white-space: nowrap; }
td:first-child { white-space: normal; }
th { font-size: 12px; color: var(--soft); font-weight: 500; }
tbody tr { border-top: 1px solid var(--rule); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 34%; }
.bar i { display: block; height: 10px; min-width: 2px; border-radius: 3px; background: var(--s1); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr));
  gap: 14px; }
figure { margin: 0; padding: 12px 14px 6px; }
figcaption { font-weight: 600; font-size: 14px; display: flex; justify-content: space-between;
  flex-wrap: wrap; gap: 4px 12px; margin-bottom: 6px; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.key { font-weight: 400; font-size: 12px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; border-radius: 2px; background: var(--own); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
svg .grid { stroke: var(--rule); }
svg .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .line { fill: none; stroke: var(--own); stroke-width: 1.8; stroke-linejoin: round; }
svg circle { fill: var(--own); }
article { padding: 14px 16px; margin-bottom: 14px; }
.sample { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.sample > div { min-width: 0; }
.given { grid-column: 1 / -1; }
@media (max-width: 700px) { .sample { grid-template-columns: 1fr; } }
pre { margin: 0; padding: 10px 12px; border-radius: 6px; background: var(--page); font: 12.5px/1.5
  ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; max-height: 420px;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
details { padding: 10px 16px; margin-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: 10px; }
.empty { padding: 30px 0; text-align: center; }
"""
