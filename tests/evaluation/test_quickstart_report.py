"""The quickstart's page: every figure of the summary, every curve of the metrics."""

import pytest

from codet5p_jax.evaluation import quickstart_report
from codet5p_jax.evaluation.report import render


def record(step, split, **values):
    return {"step": step, "split": split, **values}


RECORDS = [
    record(0, "validation", **{"matching/loss": 0.7, "matching/accuracy": 0.5}),
    record(
        10,
        "train",
        **{"loss": 3.0, "matching/loss": 0.6, "learning_rate": 1e-3},
        timing={"tokens_per_second": 900.0},
    ),
    record(20, "train", **{"matching/loss": None, "learning_rate": 5e-4}),
    record(20, "validation", **{"matching/loss": 0.3, "matching/accuracy": 0.9}),
]


@pytest.fixture
def summary():
    figures = {"mrr": 0.25, "recall@1": 0.1, "recall@5": 0.3, "recall@10": 0.5}
    return {
        "smoke": False,
        "retrieval": {
            "candidates": 500,
            "mrr": 0.2512,
            "mrr_reranked": 0.2612,
            "mrr_chance": 0.0136,
            "mrr_bm25": 0.4312,
            "mrr_fused": 0.4712,
            "fusion_weight": 0.45,
            "rerank_weight": 0.25,
            "reranked": 32,
            "systems": dict.fromkeys(quickstart_report.SYSTEMS, figures),
        },
        "losses": {"matching": {"before": 0.7, "after": 0.35}},
        "samples": {
            "completions": [
                {"title": "m.f", "given": "def f():", "generated": "g", "original": "o"}
            ],
            "docstrings": [],
        },
        "corpus": {"python": "cpython 3.11.7", "modules": 666, "functions": 15640},
        "model": {"parameters": 2181507},
        "seconds": {"read": 9.0, "stage1": 150.0, "total": 159.0},
        "seconds_partial": [],
        "peak_memory_gb": 2.5,
        "machine": {"cpus": 2},
    }


def test_the_page_shows_every_figure(summary):
    stages = {"stage1": RECORDS, "stage2": RECORDS}
    report = quickstart_report.make_report(summary, stages, {}, {"settings": "a = 1"})
    html = render(report)
    wanted = ["0.251", "0.261", "0.431", "0.471", "0.0136", "2.6 min", "2.5 GB", "2,181,507"]
    wanted += ["-50%", "m.f", "a = 1", "666 modules", "Stage 1", "Stage 2"]
    assert [text for text in wanted if text not in html] == []
    assert "smoke test" not in html
    smoke = quickstart_report.make_report({**summary, "smoke": True}, stages, {}, {})
    assert "smoke test" in render(smoke)


def test_times_that_are_not_wholly_known_are_lower_bounds(summary):
    whole = render(quickstart_report.make_report(summary, {}, {}, {}))
    assert "t least" not in whole
    killed = {**summary, "seconds_partial": ["stage1"]}
    html = render(quickstart_report.make_report(killed, {}, {}, {}))
    assert html.count("at least 2.6 min") == 2, "in the first lines and on a tile"
    assert "stage1, at least" in html
    assert "read, at least" not in html
    assert "At least: the part was killed once" in html


def test_charts_have_train_first_and_leave_out_gaps():
    charts = {chart.title: chart for chart in quickstart_report.stage_charts(RECORDS, [(5, "x")])}
    assert list(charts) == [
        "matching loss",
        "matching accuracy",
        "learning rate",
        "tokens per second",
    ]
    train, validation = charts["matching loss"].series
    assert (train.label, train.points) == ("train", [(10, 0.6)])
    assert validation.points == [(0, 0.7), (20, 0.3)]
    assert charts["tokens per second"].series[0].points == [(10, 900.0)]
    assert charts["matching loss"].marks == [(5, "x")]
