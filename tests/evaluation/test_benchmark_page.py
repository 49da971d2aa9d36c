"""docs/benchmarks.md says of every benchmark what the registry does."""

from pathlib import Path

import pytest

from codet5p_jax.evaluation.benchmarks.registry import BENCHMARKS

PAGE = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text("utf-8")


def row(benchmark) -> list[str]:
    """All cells but the last, which says what was measured."""
    metrics = [metric.name for metric in benchmark.metrics]
    published = []
    for line in benchmark.published:
        figures = " / ".join(str(line.figures[m]) for m in metrics if m in line.figures)
        how = "" if line.how == "fine-tuned" else f" ({line.how})"
        published.append(f"{line.size}{how} {figures}")
    return [
        f"`{benchmark.name}`",
        benchmark.files,
        f"{', '.join(metrics)}: {benchmark.metric_source}",
        "; ".join(published) or "none",
    ]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_row(name):
    beginning = f"| {' | '.join(row(BENCHMARKS[name]))} | "
    (found,) = (line for line in PAGE.splitlines() if line.startswith(beginning))
    assert found.removeprefix(beginning).strip("| ")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_notes(name):
    """What is not as in the paper is on the page."""
    assert all(part in PAGE for part in BENCHMARKS[name].note.split("; "))


DECODED = {  # first cell -> benchmarks
    "`humaneval`, `humaneval_instruct`": ["humaneval", "humaneval_instruct"],
    "`humaneval_x_*`": [name for name in BENCHMARKS if name.startswith("humaneval_x_")],
    "`mathqa_python`": ["mathqa_python"],
    "`gsm8k_python`": ["gsm8k_python"],
    "`mbpp`, `*_mxeval`": ["mbpp", "mbpp_mxeval", "mathqa_mxeval"],
    "`summarize_*`": [name for name in BENCHMARKS if name.startswith("summarize_")],
    "`complete_*`": ["complete_py150", "complete_java"],
    "`concode`": ["concode"],
    "`refine_small`, `refine_medium`": ["refine_small", "refine_medium"],
    "`translate_*`": ["translate_java_cs", "translate_cs_java"],
    "`generate_*`, `retrieve_generate_*`": [
        name for name in BENCHMARKS if name.removeprefix("retrieve_").startswith("generate_")
    ],
}


@pytest.mark.parametrize("cell", DECODED)
def test_decoding(cell):
    table = PAGE.partition("## Decoding")[2].splitlines()
    (found,) = (line for line in table if line.startswith(f"| {cell} | "))
    _, _, lengths, how, _ = map(str.strip, found.split("|"))
    read, said = [], []
    for benchmark in map(BENCHMARKS.get, DECODED[cell]):
        decoding = benchmark.decoding
        length = getattr(benchmark, "prefix_length", benchmark.inputs_length)
        read.append(f"{length}, {decoding.max_tokens}")
        if decoding.temperature:
            said.append(
                f"{decoding.samples} samples, temperature {decoding.temperature}, "
                f"top-p {decoding.top_p}"
            )
        else:
            beams = decoding.beams
            said.append(f"{beams} beams" if beams > 1 else "greedy")
    assert lengths == "; ".join(dict.fromkeys(read))
    (text,) = {*said}
    assert how.partition(";")[0] == text


def test_every_text_is_decoded_as_the_page_says():
    told = {name for names in DECODED.values() for name in names}
    assert told == {name for name, b in BENCHMARKS.items() if hasattr(b, "decoding")}
