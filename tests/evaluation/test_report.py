"""The report: everything given is in it, escaped; charts put points where they belong."""

import math
import re
from html.parser import HTMLParser

import pytest

from codet5p_jax.evaluation import charts, report
from codet5p_jax.evaluation.charts import Chart, Series
from codet5p_jax.evaluation.report import Figure, Report, Sample, Table

HOSTILE = "<script>alert('&')</script>"
VOID = {"meta", "line", "circle", "polyline"}


class Outline(HTMLParser):
    """Checks that every tag is closed in order, and collects names and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.names, self.attributes, self.words = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def outline(html):
    parser = Outline()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.fixture
def hostile():
    chart = Chart(
        HOSTILE,
        [Series(HOSTILE, [(0, 1.0), (1, 2.0)], marked=True), Series("two", [(0, 3.0), (1, 1.0)])],
        x_label=HOSTILE,
        marks=[(0.5, HOSTILE)],
    )
    return Report(
        HOSTILE,
        HOSTILE,
        [Figure(HOSTILE, HOSTILE, HOSTILE)],
        [Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 0.25], [HOSTILE, None]], HOSTILE, bar=1)],
        {HOSTILE: [chart]},
        {HOSTILE: [Sample(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]},
        {HOSTILE: HOSTILE},
    )


def test_all_text_is_escaped_and_nothing_is_fetched(hostile):
    html = report.render(hostile)
    page = outline(html)
    assert not page.names & {"script", "link", "img", "iframe"}
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name[:2] == "on"]
    assert "url(" not in html
    assert "@import" not in html
    assert "".join(page.words).count(HOSTILE) == html.count("&lt;script&gt;") - 1  # an aria-label


def test_write_replaces_the_file_and_survives_broken_text(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(Report("quick \ud800 start", "lead"), path)
    assert "quick ? start" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_bars_are_scaled_to_the_largest():
    table = Table("t", ["system", "MRR"], [["a", 0.2], ["b", 0.4]], bar=1)
    html = report.render(Report("t", "l", tables=[table]))
    assert re.findall(r"width:([\d.]+)%", html.split("</style>")[1]) == ["50.0", "100.0"]


def polylines(svg):
    found = re.findall(r'<polyline class="line s(\d)" points="([^"]*)"', svg)
    return {
        int(n): [tuple(map(float, p.split(","))) for p in points.split()] for n, points in found
    }


def test_chart_places_points():
    line = [(0, 0.0), (5, 10.0), (10, 5.0)]
    (points,) = polylines(charts.svg(Chart("c", [Series("s", line)]))).values()
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    middle = (left + right) / 2, (top + bottom) / 2
    assert points == [(left, bottom), (middle[0], top), (right, middle[1])]


def test_chart_leaves_out_what_is_not_finite():
    svg = charts.svg(Chart("c", [Series("s", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)])]))
    assert len(polylines(svg)[1]) == 2
    assert "nan" not in svg


@pytest.mark.parametrize("points", [[(3, 2.0)], [(3, 0.0)], [(0, 5.0), (1, 5.0)]])
def test_chart_of_one_value(points):
    outline(charts.svg(Chart("c", [Series("s", points)])))


def test_empty_chart_says_so():
    assert "nothing recorded" in charts.svg(Chart("c", [Series("s", [])]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.3, 7.9, [0, 2, 4, 6, 8]), (0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002])],
)
def test_ticks(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.013583, "0.01358"), (15000, "15,000"), (2e-5, "2e-05"), (0, "0"), (4.125, "4.125")],
)
def test_format_number(value, text):
    assert charts.format_number(value) == text
