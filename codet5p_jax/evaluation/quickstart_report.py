"""The quickstart's summary and metrics as a `Report`."""

from collections.abc import Mapping, Sequence
from typing import Any

from codet5p_jax.evaluation.charts import Chart, Series
from codet5p_jax.evaluation.report import Figure, Report, Sample, Table

Record = Mapping[str, Any]  # a line of metrics.jsonl

SYSTEMS = {
    "embedding": "embedding",
    "embedding, reranked": "embedding, first 32 reranked by the matching head",
    "embedding, reranked by logit + cosine": "the same, scored as CodeT5+'s released script does",
    "bm25": "BM25",
    "fused": "embedding and BM25 fused",
}


def make_report(
    summary: Mapping[str, Any],
    records: Mapping[str, Sequence[Record]],
    phase_starts: Mapping[str, Sequence[tuple[int, str]]],
    configurations: Mapping[str, str],
) -> Report:
    """Lays out the page.

    Args:
      summary: what `summary.json` holds.
      records: stage -> its metrics.
      phase_starts: stage -> (step, name) of phases after the first.
      configurations: heading -> text shown folded.
    """
    corpus, model, seconds = summary["corpus"], summary["model"], summary["seconds"]
    lead = (
        f"A CodeT5+ of {model['parameters']:,} parameters, pretrained from scratch in "
        f"{_least(summary)}{seconds['total'] / 60:.1f} minutes on the standard library of "
        f"{corpus['python']}: "
        f"{corpus['modules']} modules, {corpus['functions']:,} functions. Retrieval and losses are "
        "measured on modules that training never saw."
    )
    if summary["smoke"]:
        lead = "A smoke test of a few steps: these figures say nothing about the model. " + lead
    charts = {
        f"Stage {number}": stage_charts(records[stage], phase_starts.get(stage, ()))
        for number, stage in enumerate(records, start=1)
    }
    samples = {
        "Completions (stage 1, seq2seq causal LM)": summary["samples"]["completions"],
        "Docstrings (stage 2, code to text)": summary["samples"]["docstrings"],
    }
    return Report(
        title="CodeT5+ quickstart",
        lead=lead,
        figures=_figures(summary),
        tables=[_retrieval_table(summary["retrieval"]), _loss_table(summary), _seconds(summary)],
        charts=charts,
        samples={head: [Sample(**sample) for sample in some] for head, some in samples.items()},
        details=configurations,
    )


def stage_charts(records: Sequence[Record], marks: Sequence[tuple[int, str]] = ()) -> list[Chart]:
    """Losses, then other metrics of objectives, learning rate and speed, as far as recorded."""
    by_split = {
        split: [record for record in records if record["split"] == split]
        for split in dict.fromkeys(["train", *(record["split"] for record in records)])
    }
    names = dict.fromkeys(name for record in records for name in record if "/" in name)
    losses = [name for name in names if name.endswith("/loss")]
    accuracies = [name for name in names if name.endswith("/accuracy")]

    def chart(title: str, name: str, timing: bool = False) -> Chart:
        lines = []
        for split, some in by_split.items():
            values = [(r["step"], (r.get("timing", {}) if timing else r).get(name)) for r in some]
            points = [(step, value) for step, value in values if value is not None]
            if points:
                lines.append(Series(split, points, marked=split != "train"))
        return Chart(title, lines, marks=marks)

    charts = [chart(name.removesuffix("/loss") + " loss", name) for name in losses]
    charts += [chart(name.replace("/", " "), name) for name in accuracies]
    charts.append(chart("learning rate", "learning_rate"))
    charts.append(chart("tokens per second", "tokens_per_second", timing=True))
    return [one for one in charts if one.series]


def _figures(summary: Mapping[str, Any]) -> list[Figure]:
    retrieval, seconds = summary["retrieval"], summary["seconds"]
    number = retrieval["candidates"]
    return [
        Figure(
            f"{retrieval['mrr']:.3f}", "MRR by embedding", f"chance {retrieval['mrr_chance']:.4f}"
        ),
        Figure(
            f"{retrieval['mrr_reranked']:.3f}",
            "MRR reranked",
            f"the first {retrieval['reranked']}; weight of the matching head "
            f"{retrieval['rerank_weight']:.2f}",
        ),
        Figure(f"{retrieval['mrr_bm25']:.3f}", "MRR of BM25", f"on the same {number} functions"),
        Figure(
            f"{retrieval['mrr_fused']:.3f}",
            "MRR fused",
            f"weight of the embedding {retrieval['fusion_weight']:.2f}",
        ),
        Figure(
            f"{_least(summary)}{seconds['total'] / 60:.1f} min",
            "from start to end",
            f"on {summary['machine']['cpus']} CPU cores",
        ),
        Figure(
            f"{summary['peak_memory_gb']:.1f} GB", "peak memory", "of the largest of its processes"
        ),
    ]


def _retrieval_table(retrieval: Mapping[str, Any]) -> Table:
    names = ("mrr", "recall@1", "recall@5", "recall@10")
    number = retrieval["candidates"]
    chance = [retrieval["mrr_chance"], *(min(k / number, 1.0) for k in (1, 5, 10))]
    rows = [["chance", *chance]] + [
        [label, *(retrieval["systems"][system][name] for name in names)]
        for system, label in SYSTEMS.items()
    ]
    return Table(
        "Text-to-code retrieval",
        ["", "MRR", "recall@1", "recall@5", "recall@10"],
        rows,
        note=f"The first paragraph of a docstring is to find its function among {number} functions "
        "of held-out modules, docstrings taken out. Ties count against the system. The weight of "
        "the fusion was chosen on the validation modules.",
        bar=1,
    )


def _loss_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        [name, loss["before"], loss["after"], f"{loss['after'] / loss['before'] - 1:+.0%}"]
        for name, loss in summary["losses"].items()
    ]
    return Table(
        "Losses on held-out modules",
        ["objective", "before", "after", "change"],
        rows,
        note="Before and after the stage that trains the objective: nats per target token, per "
        "text-code pair (contrastive), or per pair judged (matching).",
    )


def _seconds(summary: Mapping[str, Any]) -> Table:
    partial = summary["seconds_partial"]
    rows = [
        [f"{part}, at least" if part in partial else part, float(seconds)]
        for part, seconds in summary["seconds"].items()
        if part != "total"
    ]
    note = "At least: the part was killed once, and what it had taken by then is not known."
    return Table(
        "Where the time went",
        ["part", "seconds"],
        rows,
        note=note if partial else "",
        bar=1,
        decimals=1,
    )


def _least(summary: Mapping[str, Any]) -> str:
    """What to say before the time in all."""
    return "at least " if summary["seconds_partial"] else ""
