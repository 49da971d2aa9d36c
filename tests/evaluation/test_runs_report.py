"""Several runs on a page: the right lines, counted in the right units, and what differs."""

import pytest

from codet5p_jax.evaluation.report import COLOURS, render
from codet5p_jax.evaluation.runs_report import DRAWN, Run, make_report, settings
from tests.evaluation.test_report import outline

CONFIGURATION = """import a.b
# Macros:
# ==============================================================================
MODEL_DIR = '/runs/one'
TRAIN_STEPS = 10

# Parameters for a/train.train:
# ==============================================================================
a/train.train.optimizer = @AdamW()
train.train.rename = \\
    (('long', 'one'),
     ('other', 'one'))
"""


def train(step, loss, tokens=100.0, **timing):
    timing = {"tokens_per_second": 5.0, "goodput": 0.5, "spent/steps": 3.0, **timing}
    return {"step": step, "split": "train", "loss": loss, "span/loss": loss, "tokens": tokens,
            "learning_rate": 0.1, "timing": timing}  # fmt: skip


def held_out(step, loss):
    return {"step": step, "split": "validation", "span/loss": loss}


def goodput(step, **seconds):
    spent = {f"spent/{part}": value for part, value in seconds.items()}
    return {"step": step, "split": "goodput", "timing": {"goodput": 0.75, **spent}}


@pytest.fixture
def runs():
    one = [
        held_out(0, 9.0),
        train(2, 4.0),
        train(4, 3.0, tokens=50.0, mfu=0.4),
        held_out(3, 2.5),
        train(6, None),
        goodput(6, steps=9.0, start_up=3.0),
    ]
    other = CONFIGURATION.replace("AdamW", "Muon").replace("/one", "/two")
    return [Run("one", one, CONFIGURATION), Run("two", [train(5, 1.0)], other)]


def lines(report, heading, title):
    [chart] = [chart for chart in report.charts[heading] if chart.title == title]
    return {line.label: line.points for line in chart.series}


def test_losses_over_steps_and_tokens(runs):
    report = make_report(runs)
    titles = [chart.title for chart in report.charts["Losses over steps"]]
    assert titles == ["loss", "span", "span, validation"]
    over_steps = lines(report, "Losses over steps", "span")
    assert over_steps == {"one": [(2, 4.0), (4, 3.0)], "two": [(5, 1.0)]}
    assert lines(report, "Losses over tokens", "span") == {
        "one": [(200.0, 4.0), (300.0, 3.0)],
        "two": [(500.0, 1.0)],
    }
    # Step 3 lies between two records: half of the 100 tokens of steps 3 and 4.
    held_out = lines(report, "Losses over tokens", "span, validation")
    assert held_out == {"one": [(0.0, 9.0), (250.0, 2.5)], "two": []}


def test_a_run_has_the_same_colour_everywhere(runs):
    report = make_report(runs[::-1])
    html = render(report)
    outline(html)
    mfu = html.partition("<figcaption>MFU")[2].partition("</figure>")[0]
    assert 'class="key s2">one' in mfu
    assert 'class="s2"' in mfu
    assert "two" not in mfu, "it has none"


def test_speed_and_goodput(runs):
    report = make_report(runs)
    some = "Learning rate, speed, goodput"
    assert lines(report, some, "MFU") == {"one": [(4, 0.4)], "two": []}
    assert lines(report, some, "goodput so far")["two"] == [(5, 0.5)]
    overview, spent, _ = report.tables
    assert overview.rows == [
        ["one", 6, 500, None, "0.2", "75.0%"],
        ["two", 5, 500, 1.0, "0.1", "50.0%"],
    ]
    assert spent.rows == [["steps", 9.0, 3.0], ["start-up", 3.0, None]]


def test_only_what_differs(runs):
    [*_, table] = make_report(runs).tables
    assert table.rows == [["a/train.train.optimizer", "@AdamW()", "@Muon()"]]
    [*_, same] = make_report([runs[0], runs[0]]).tables
    assert (same.rows, same.note) == ([], "Nothing but the model directory.")
    assert [t.title for t in make_report(runs[:1]).tables] == ["Runs", "Where the time went"]


def test_settings_on_several_lines():
    found = settings(CONFIGURATION)
    assert found["train.train.rename"] == "(('long', 'one'), ('other', 'one'))"
    assert found["TRAIN_STEPS"] == "10"
    assert len(found) == 4


def test_a_run_that_recorded_nothing_and_one_that_recorded_much():
    long = [train(step, 1.0) for step in range(1, 2500)]
    report = make_report([Run("empty", [], ""), Run("long", long, "")])
    outline(render(report))
    points = lines(report, "Losses over steps", "loss")["long"]
    assert DRAWN / 2 < len(points) <= DRAWN
    assert points[-1] == (2499, 1.0)
    assert report.tables[0].rows[0] == ["empty", 0, 0, None, None, None]


def test_there_are_no_more_runs_than_colours(runs):
    make_report(runs[:1] * COLOURS)
    with pytest.raises(ValueError, match="at most 8 runs on a page, found 9"):
        make_report(runs[:1] * (COLOURS + 1))
