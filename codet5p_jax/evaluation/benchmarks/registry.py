"""All benchmarks by name: what each reads, asks and counts, and the paper's figures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.finetuning import (
    aligned,
    completion,
    concode,
    labelled,
    math_programs,
    programs,
    retrieval,
    retrieved,
    summarization,
)
from codet5p_jax.evaluation import humaneval_x
from codet5p_jax.evaluation.benchmarks import (
    agreement,
    augmented,
    labels,
    published,
    search,
    text,
)
from codet5p_jax.evaluation.benchmarks.base import Benchmark, Metric
from codet5p_jax.evaluation.benchmarks.generation import Decoding
from codet5p_jax.evaluation.benchmarks.programs import (
    HUMANEVAL_STOP,
    ProgramBenchmark,
    check_x,
    whole_program,
    with_an_answer,
    with_its_test,
)
from codet5p_jax.evaluation.programs import (
    GSM8K_SECONDS,
    HUMANEVAL_SECONDS,
    MATHQA_SECONDS,
    MBPP_SECONDS,
)

Records = Iterator[dict[str, Any]]

_OF_CODE = (Metric("bleu"), Metric("exact_match"), Metric("code_bleu", percent=True))
_FUNCTION = Decoding(max_tokens=320, beams=5)
_NOT_IN_PAPER = "not a benchmark of the paper"
_TEMPERATURES = (
    "the paper has temperature 0.2, 0.6, 0.8 for k = 1, 10, 100: a run with "
    "`--temperature` for each"
)
_ARITHMETIC = ("scipy", "numpy")  # what programs for mathematics import
_ANSWERS = (
    "the number of samples and the tolerance are not stated: as many as k; rounded as "
    "program-of-thoughts does"
)


def _summaries(folder: Path, split: str, *, language: str, setting: str) -> Records:
    return summarization.summaries(folder, language, split, setting=setting)


def _programs(folder: Path, split: str, *, language: str, setting: str) -> Records:
    return summarization.programs(folder, language, split, setting=setting)


def _questions(folder: Path, split: str, *, setting: str) -> Records:
    return completion.completion_questions(folder, setting=_only_test(split, setting))


def _human_eval(folder: Path, split: str, *, setting: str) -> Records:
    return programs.human_eval(folder, setting=_only_test(split, setting))


def _human_eval_x(folder: Path, split: str, *, language: str, setting: str) -> Records:
    """In Rust, what is to be continued is the declaration and the comment in its body."""
    for problem in programs.human_eval_x(folder, language, setting=_only_test(split, setting)):
        before = problem["declaration"] if language == "rust" else ""
        yield {**problem, "source": before + problem["prompt"]}


def _mxeval(folder: Path, split: str, *, names: tuple[str, ...], setting: str) -> Records:
    return programs.mxeval(folder, *names, setting=_only_test(split, setting))


def _only_test(split: str, setting: str) -> str:
    if split != "test":
        raise ValueError(f"expected --split=test, the only one there is, got {split!r}")
    return setting


def _pass_at(*ks: int) -> tuple[Metric, ...]:
    return tuple(Metric(f"pass@{k}", percent=True) for k in ks)


def _summary(language: str) -> Benchmark:
    return text.TextBenchmark(
        name=f"summarize_{language}",
        about=f"summaries of functions in {language}",
        folder="summarization",
        files=f"`summarization/{language}/test.jsonl`",
        read=partial(_summaries, language=language),
        metrics=(Metric("bleu"),),
        metric_source="smoothed sentence BLEU-4 of CodeXGLUE's code-to-text evaluator",
        published=published.SUMMARIES[language],
        published_source="§5, code summarisation",
        figures=text.summary_figures,
        decoding=Decoding(max_tokens=128, beams=5),
        inputs_length=256,
        numbered=True,
    )


def _lines(name: str, corpus: str, stop: str) -> Benchmark:
    return text.LineBenchmark(
        name=name,
        about=f"the rest of a line, {corpus}",
        folder=f"line_completion/{corpus}",
        files=f"`line_completion/{corpus}/test.json`",
        read=_questions,
        metrics=(Metric("exact_match"), Metric("edit_similarity")),
        metric_source="CodeXGLUE's CodeCompletion-line evaluator",
        published=published.LINES[corpus],
        published_source="§5, code completion",
        figures=text.line_figures,
        decoding=Decoding(max_tokens=100, beams=5),
        stop=stop,
        note="the last 924 tokens before and 100 to write are CodeGPT's, the paper states 1,024"
        + ("; a line is cut at `{`, as UniXcoder does" if stop else ""),
    )


def _rewriting(name: str, about: str, folder: str, files: str, **more: Any) -> Benchmark:
    return text.TextBenchmark(
        name=name,
        about=about,
        folder=folder,
        files=files,
        metrics=_OF_CODE,
        figures=text.code_figures,
        note=_NOT_IN_PAPER,
        **more,
    )


def _refinement(size: str, inputs: int, targets: int) -> Benchmark:
    return _rewriting(
        f"refine_{size}",
        f"repairs of Java methods, {size}",
        f"code_refinement/{size}",
        f"`code_refinement/{size}/test.buggy-fixed.{{buggy,fixed}}`",
        read=aligned.refinement,
        language="java",
        metric_source="CodeXGLUE's code-refinement evaluator",
        decoding=Decoding(max_tokens=targets, beams=10),
        inputs_length=inputs,
    )


def _translation(source: str, target: str) -> Benchmark:
    return _rewriting(
        f"translate_{source}_{target}",
        f"methods in {source} as {target}",
        "code_translation",
        "`code_translation/test.java-cs.txt.{java,cs}`",
        read=partial(aligned.translation, source=source),
        language={"cs": "c_sharp"}.get(target, target),
        metric_source="CodeXGLUE's code-to-code-trans evaluator",
        decoding=Decoding(max_tokens=256, beams=10),
        inputs_length=320,
    )


def _redcoder(kind: type[Any], name: str, about: str, language: str, **more: Any) -> Benchmark:
    return kind(
        name=name,
        about=about.format(language.title()),
        language=language,
        metrics=(Metric("exact_match"), Metric("bleu"), Metric("code_bleu", percent=True)),
        metric_source="REDCODER's evaluation_scripts",
        published_source="§5, retrieval-augmented code generation",
        figures=text.code_figures,
        **more,
    )


def _human_eval_programs(name: str, about: str, **more: Any) -> Benchmark:
    return ProgramBenchmark(
        name=name,
        about=about,
        folder="humaneval",
        files="`humaneval/HumanEval.jsonl`",
        read=_human_eval,
        metrics=(
            *_pass_at(1, 10, 100),
            *(Metric(f"code_t_pass@{k}", percent=True) for k in (1, 10, 100)),
        ),
        metric_source="human-eval's evaluator; with `--code_t`, microsoft/CodeT",
        check=with_its_test(HUMANEVAL_SECONDS),
        ks=(1, 10, 100),
        decoding=Decoding(max_tokens=800, temperature=0.2, top_p=0.95, samples=200),
        inputs_length=800,
        tabs=True,
        stop=HUMANEVAL_STOP,
        tests_prompt=agreement.PROMPT,
        imports=("numpy",),
        **more,
    )


def _nearest(language: str) -> Benchmark:
    return _redcoder(
        augmented.NearestBenchmark,
        f"nearest_{language}",
        "the nearest function in {} in place of the one to write (retrieval only)",
        language,
        folder="summarization",
        files=f"`summarization/{language}/{{train,test}}.jsonl`",
        read=partial(_programs, language=language),
        published=published.NEAREST[language],
        note="64 tokens of text and 360 of code are not stated; code that is the reference is left "
        "out, as the paper's exact match of 0 says",
    )


def _generation(language: str) -> Benchmark:
    return _redcoder(
        text.TextBenchmark,
        f"generate_{language}",
        "functions in {} for a docstring (generation only)",
        language,
        folder="summarization",
        files=f"`summarization/{language}/test.jsonl`",
        read=partial(_programs, language=language),
        published=published.GENERATION[language],
        decoding=_FUNCTION,
        inputs_length=600,
    )


def _augmented(language: str, codes: int) -> Benchmark:
    return _redcoder(
        augmented.AugmentedBenchmark,
        retrieved.name(language, codes),
        f"functions in {{}} for a docstring and code found for it ({codes})",
        language,
        folder=f"retrieve_generate/{language}",
        files=f"`retrieve_generate/{language}/test.jsonl`",
        read=partial(retrieved.retrieved, codes=codes),
        published=published.AUGMENTED[language, codes],
        decoding=_FUNCTION,
        inputs_length=600,
        note="what [SEP] is is not stated: `--code_separator`",
    )


def _programs_x(name: str, language: str) -> Benchmark:
    return ProgramBenchmark(
        name=f"humaneval_x_{name}",
        about=f"bodies of functions in {language}",
        folder="humaneval_x",
        files=f"`humaneval_x/humaneval_{name}.jsonl`",
        read=partial(_human_eval_x, language=name),
        metrics=_pass_at(1, 10, 100),
        metric_source="CodeGeeX's evaluator",
        check=check_x,
        ks=(1, 10, 100),
        decoding=Decoding(max_tokens=800, temperature=0.2, top_p=0.95, samples=200),
        inputs_length=800,
        imports=humaneval_x.PYTHON_PACKAGES,
        readable=humaneval_x.readable,
        note=f"{_NOT_IN_PAPER}; decoded as HumanEval, without its tabs and ends",
    )


def _mxeval_programs(
    name: str, about: str, folder: str, names: tuple[str, ...], **more: Any
) -> Benchmark:
    return ProgramBenchmark(
        name=name,
        about=about,
        folder=folder,
        files=f"`{folder}/{names[0]}`",
        read=partial(_mxeval, names=names),
        metrics=_pass_at(1),
        metric_source="mxeval's evaluator",
        ks=(1,),
        decoding=Decoding(max_tokens=512),
        inputs_length=512,
        note=f"{_NOT_IN_PAPER} in this form; decoding is ours",
        **more,
    )


def _search(name: str, about: str, **more: Any) -> Benchmark:
    metrics = tuple(Metric(f"recall@{k}", percent=True) for k in search.CUTS)
    return search.SearchBenchmark(
        name=name,
        about=about,
        metrics=(Metric("mrr", percent=True), *metrics),
        published_source="§5, text-to-code retrieval; zero-shot: the released script's page",
        **more,
    )


def _code_search(language: str) -> Benchmark:
    return _search(
        f"retrieve_{language}",
        f"functions in {language} for a docstring (CodeSearchNet)",
        folder=f"csn_retrieval/{language}",
        files=f"`csn_retrieval/{language}/{{test,codebase}}.jsonl`",
        read=retrieval.functions,
        metric_source="MRR over the whole code base, as in the released script",
        published=published.SEARCH[language],
        candidates=search.code_base,
    )


_ALL = (
    _human_eval_programs(
        "humaneval",
        "bodies of functions in Python",
        published=published.HUMANEVAL,
        published_source="§5, zero-shot on HumanEval",
        note=_TEMPERATURES,
    ),
    _human_eval_programs(
        "humaneval_instruct",
        "the same, of models tuned on instructions",
        published=published.HUMANEVAL_INSTRUCT,
        published_source="§5, zero-shot on HumanEval; released model: its page",
        instructed=True,
        note=_TEMPERATURES,
    ),
    *(
        _programs_x(name, language)
        for name, language in {
            "python": "Python",
            "cpp": "C++",
            "java": "Java",
            "js": "JavaScript",
            "rust": "Rust",
        }.items()
    ),
    ProgramBenchmark(
        name="mathqa_python",
        about="programs that answer questions of MathQA",
        folder="mathqa_python",
        files="`mathqa_python/test.jsonl`",
        read=math_programs.mathqa,
        metrics=_pass_at(80, 1),
        metric_source="executed `answer`; no official evaluator",
        published=published.MATHQA,
        published_source="§5, math programming",
        check=with_an_answer(MATHQA_SECONDS),
        ks=(1, 80),
        decoding=Decoding(max_tokens=256, temperature=1.2, top_p=0.95, samples=80),
        inputs_length=256,
        imports=_ARITHMETIC,
        task_id=None,
        note=_ANSWERS,
    ),
    ProgramBenchmark(
        name="gsm8k_python",
        about="programs that answer questions of GSM8K",
        folder="gsm8k",
        files="`gsm8k/test.jsonl`",
        read=math_programs.gsm8k,
        metrics=_pass_at(100, 1),
        metric_source="program-of-thoughts' evaluator",
        published=published.GSM8K,
        published_source="§5, math programming",
        check=with_an_answer(GSM8K_SECONDS),
        ks=(1, 100),
        decoding=Decoding(max_tokens=138, temperature=1.2, top_p=0.95, samples=100),
        inputs_length=246,
        imports=_ARITHMETIC,
        task_id=None,
        note=_ANSWERS,
    ),
    ProgramBenchmark(
        name="mbpp",
        about="programs for a description and tests",
        folder="mbpp",
        files="`mbpp/mbpp.jsonl`",
        read=programs.mbpp,
        metrics=_pass_at(1),
        metric_source="MBPP's own: its assertions run",
        check=whole_program(MBPP_SECONDS),
        ks=(1,),
        decoding=Decoding(max_tokens=512),
        inputs_length=512,
        note=f"{_NOT_IN_PAPER}; decoding is ours",
    ),
    _mxeval_programs(
        "mbpp_mxeval",
        "MBPP as bodies of functions (mxeval)",
        "mbpp",
        ("mbpp_release_v1.jsonl", "mbpp_release_v1.mxeval.jsonl"),
        check=with_its_test(MBPP_SECONDS),
    ),
    _mxeval_programs(
        "mathqa_mxeval",
        "MathQA-Python as bodies of functions (mxeval)",
        "mathqa_python",
        ("mathqa-test-python_v1.jsonl", "mathqa-test-python.jsonl"),
        check=with_its_test(MATHQA_SECONDS),
        imports=_ARITHMETIC,
    ),
    *map(_summary, summarization.LANGUAGES),
    _lines("complete_py150", "py150", ""),
    _lines("complete_java", "javaCorpus", "{"),
    text.TextBenchmark(
        name="concode",
        about="Java methods for a description and their class",
        folder="concode",
        files="`concode/dev.json`",
        read=concode.concode,
        language="java",
        metrics=_OF_CODE,
        metric_source="CodeXGLUE's text-to-code evaluator",
        split="validation",
        figures=text.method_figures,
        decoding=Decoding(max_tokens=150, beams=10),
        inputs_length=320,
        note=f"{_NOT_IN_PAPER}; the methods of its test are not published",
    ),
    _refinement("small", 130, 120),
    _refinement("medium", 240, 240),
    _translation("java", "cs"),
    _translation("cs", "java"),
    labels.LabelBenchmark(
        name="defect",
        about="whether a function in C has a defect (Devign)",
        folder="defect",
        files="`defect/test.jsonl`",
        read=labelled.defects,
        metrics=(Metric("accuracy", percent=True),),
        metric_source="CodeXGLUE's Defect-detection evaluator",
        published=published.DEFECTS,
        published_source="§5, defect detection",
        figures=labels.defect_figures,
        length=512,
    ),
    labels.LabelBenchmark(
        name="clone",
        about="whether two methods in Java do the same (BigCloneBench)",
        folder="clone_bigclonebench",
        files="`clone_bigclonebench/data.jsonl`, `test.txt`",
        read=labelled.clones,
        metrics=tuple(Metric(name, percent=True) for name in ("f1", "precision", "recall")),
        metric_source="CodeXGLUE's Clone-detection-BigCloneBench evaluator",
        published=published.CLONES,
        published_source="§5, clone detection",
        figures=labels.clone_figures,
        length=400,
        sides=("code", "other"),
        names=("idx", "other_idx"),
    ),
    *(
        benchmark
        for language in retrieved.LANGUAGES
        for benchmark in (
            _nearest(language),
            _generation(language),
            *(_augmented(language, codes) for codes in retrieved.CODES),
        )
    ),
    *map(_code_search, summarization.LANGUAGES),
    _search(
        "retrieve_cosqa",
        "functions in Python for a question (CosQA)",
        folder="cosqa",
        files="`cosqa/cosqa-retrieval-test-500.json`, `code_idx_map.txt`",
        read=partial(retrieval.cosqa, only_matching=False),
        metric_source="CodeXGLUE's evaluators of code search",
        published=published.SEARCH["cosqa"],
        candidates=search.cosqa_base,
        name_field="idx",
        target_field="retrieval_idx",
    ),
    _search(
        "retrieve_advtest",
        "functions in Python with changed names for a docstring (AdvTest)",
        folder="advtest",
        files="`advtest/test.jsonl`",
        read=retrieval.functions,
        metric_source="CodeXGLUE's NL-code-search-Adv evaluator",
        published=published.SEARCH["advtest"],
        candidates=search.own_functions,
        target_field="idx",
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def find(names: str) -> list[Benchmark]:
    """The benchmarks of `name,name`.

    Raises:
      ValueError: there is none of a name.
    """
    wanted = list(dict.fromkeys(names.split(",")))
    for name in wanted:
        if name not in BENCHMARKS:
            raise ValueError(f"--benchmark: expected some of {', '.join(BENCHMARKS)}, got {name!r}")
    return [BENCHMARKS[name] for name in wanted]
