"""What benchmarks gave beside the paper's figures, in Markdown and HTML."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codet5p_jax.evaluation import report
from codet5p_jax.evaluation.benchmarks.base import Benchmark
from codet5p_jax.evaluation.benchmarks.files import read_json
from codet5p_jax.evaluation.benchmarks.run import SCORES
from codet5p_jax.files import write_text

HEADER = ("benchmark", "metric", "here", "paper", "problems")


def write(folder: Path, benchmarks: Mapping[str, Benchmark]) -> str:
    """Writes `scores.json`, `table.md` and `table.html` of all runs in a folder, and returns the
    second."""
    found = []
    for name in benchmarks:
        path = folder / name / SCORES
        if path.is_file():
            found.append(read_json(path, "benchmark", "scores", "published", "remark"))
    rows = [row for result in found for row in _rows(benchmarks[result["benchmark"]], result)]
    remarks = {result["benchmark"]: result["remark"] for result in found if result["remark"]}
    text = markdown(rows) + "".join(f"\n- {name}: {text}." for name, text in remarks.items())
    by_name = {result["benchmark"]: result for result in found}
    write_text(folder / SCORES, json.dumps(by_name, indent=2) + "\n")
    write_text(folder / "table.md", text + "\n")
    page = report.Report(
        title="Benchmarks",
        lead="What a model gave, and the figures of CodeT5+ (arXiv 2305.07922).",
        tables=[report.Table("Figures", HEADER, rows, decimals=2)],
        details={name: text for name, text in remarks.items()},
    )
    report.write(page, folder / "table.html")
    return text


def markdown(rows: Sequence[Sequence[report.Cell]]) -> str:
    """The table; numbers with two decimals."""
    lines = [HEADER, ["---"] * len(HEADER)]
    lines += [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def published_text(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The paper's figures of a metric.

    >>> published_text([{"size": "220M", "figures": {"mrr": 77.7}, "how": "fine-tuned"}], "mrr")
    '77.70 (220M, fine-tuned)'
    """
    return "; ".join(
        f"{row['figures'][metric]:.2f} ({row['size']}, {row['how']})"
        for row in rows
        if metric in row["figures"]
    )


def _rows(benchmark: Benchmark, result: Mapping[str, Any]) -> list[list[report.Cell]]:
    """A row for each metric that was found."""
    factor = {metric.name: 100.0 if metric.percent else 1.0 for metric in benchmark.metrics}
    return [
        [
            benchmark.name,
            metric,
            value * factor.get(metric, 1.0),
            published_text(result["published"], metric) or "none",
            f"{result['problems']:,} of {result['of']:,}",
        ]
        for metric, value in result["scores"].items()
    ]
