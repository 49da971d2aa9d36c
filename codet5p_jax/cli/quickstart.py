"""Pretrains a small CodeT5+ in both stages on the Python standard library, and shows what it can.

Everything it needs is in the Python that runs it. It takes minutes on two CPU cores; started again
with the same options, it goes on where it stopped.
"""

import argparse
import functools
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codet5p_jax.cli import child
from codet5p_jax.cli.arguments import seed
from codet5p_jax.cli.done_parts import DoneParts, write_json

if TYPE_CHECKING:
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.documents import Indexed
    from codet5p_jax.evaluation.encoder import PairEncoder

VOCAB_SIZE = 8192
MIXTURES = ("stdlib_stage1_denoise", "stdlib_stage1", "stdlib_stage2")
STAGES = ("stage1", "stage2")
PARTS = {
    "read": "reading the standard library",
    "tokenizer": "training the tokenizer",
    "cache": "caching the mixtures",
    "stage1": "stage 1: span denoising, then causal language modelling as well",
    "stage2": "stage 2: contrastive, matching, text to code, code to text",
    "retrieval": "measuring text-to-code retrieval on held-out modules",
    "samples": "writing completions and docstrings",
    "index": "building the search index",
}
SAMPLES = 3
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "seqio")


@dataclass(frozen=True)
class Scale:
    """How much is done. The files runs/quickstart_*.gin say how long training is, bar overrides."""

    candidates: int
    bindings: dict[str, tuple[str, ...]]


FULL = Scale(candidates=500, bindings={stage: () for stage in STAGES})
_FEW_STEPS = ("TRAIN_STEPS=2", "WARMUP_STEPS=1", "train.Evaluation.batches=1")
SMOKE = Scale(
    candidates=64,
    bindings={
        "stage1": (*_FEW_STEPS, "DENOISE_STEPS=2", "DENOISE_BATCH_SIZE=8", "BATCH_SIZE=12"),
        "stage2": (*_FEW_STEPS, "BATCH_SIZE=24"),
    },
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `codet5p quickstart`."""
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("quickstart_run"),
        help="where everything goes (default: ./%(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of weights, order and noise")
    parser.add_argument(
        "--until", choices=PARTS, metavar="PART", help=f"stop after one of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few steps, to see that every part runs; its figures mean nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the parts that are not done yet, writes summary and report; returns the exit code."""
    directory = args.output_dir
    directory.mkdir(parents=True, exist_ok=True)
    identity = {"seed": args.seed, "smoke": args.smoke, "python": platform.python_version()}
    done = DoneParts(directory / "parts.json", identity)
    quickstart = Quickstart(directory, args.seed, SMOKE if args.smoke else FULL)
    for number, name in enumerate(PARTS, start=1):
        print(f"[{number}/{len(PARTS)}] {PARTS[name]}", flush=True)
        quickstart.found[name] = done.do(name, getattr(quickstart, name))
        if name == args.until:
            return 0
    summary = {**identity, **quickstart.summary(), **done.costs(), **_machine()}
    write_json(directory / "summary.json", summary)
    quickstart.write_report(summary)
    _print_end(directory, summary)
    return 0


class Quickstart:
    """The parts: methods called as in `PARTS`, each of which returns what it found as JSON values.

    Attributes:
      found: what the parts that are done found, by name.
    """

    def __init__(self, directory: Path, seed: int, scale: Scale):
        self.found: dict[str, dict[str, Any]] = {}
        self.directory, self.seed, self.scale = directory, seed, scale
        self.cache_dir = directory / "cache"
        self.tokenizer_dir = directory / "tokenizer"
        self.model_dirs = {stage: directory / stage for stage in STAGES}

    # ------------------------------------------------------------------ data

    @functools.cached_property
    def modules(self) -> list[dict[str, str]]:
        """Every module of the standard library."""
        from codet5p_jax.data.corpora import stdlib

        return list(stdlib.modules())

    @functools.cached_property
    def documents(self) -> list["Indexed"]:
        """Every function of it."""
        from codet5p_jax.evaluation.documents import python_documents

        with _spinner("parsing modules"):
            return list(python_documents(self.modules))

    @functools.cached_property
    def pairs(self) -> dict[str, list[dict[str, str]]]:
        """Functions with a docstring, by split."""
        from codet5p_jax.data.corpora import stdlib
        from codet5p_jax.data.corpora.files import split_of

        by_split: dict[str, list[dict[str, str]]] = {split: [] for split in stdlib.SHARES}
        with _spinner("pairing functions with docstrings"):
            for pair in stdlib.documented_functions():
                by_split[split_of(pair["module"], stdlib.SHARES)].append(pair)
        return by_split

    def read(self) -> dict[str, Any]:
        """Counts what there is."""
        from codet5p_jax.data.corpora import stdlib
        from codet5p_jax.data.corpora.files import split_of

        splits = [split_of(module["module"], stdlib.SHARES) for module in self.modules]
        return {
            "python": stdlib.version(),
            "modules": len(self.modules),
            "modules_by_split": {split: splits.count(split) for split in stdlib.SHARES},
            "functions": len(self.documents),
            "documented": sum(bool(each.docstring) for each in self.documents),
            "pairs_by_split": {split: len(pairs) for split, pairs in self.pairs.items()},
        }

    def tokenizer(self) -> dict[str, Any]:
        """Byte-level BPE on the training modules."""
        from codet5p_jax.data.corpora import stdlib
        from codet5p_jax.data.tokenizer import train_tokenizer

        with _spinner("learning merges"):
            texts = (module["code"] for module in stdlib.modules("train"))
            tokenizer = train_tokenizer(texts, VOCAB_SIZE, self.tokenizer_dir)
        return {"vocab_size": tokenizer.vocab_size}

    def cache(self) -> dict[str, Any]:
        """In a process of its own: it imports TensorFlow."""
        options = (f"--cache_dir={self.cache_dir}", f"--tokenizer={self.tokenizer_dir}")
        self._codet5p("prepare", *MIXTURES, *options)
        return {"mixtures": list(MIXTURES)}

    # ------------------------------------------------------------------ training

    def stage1(self) -> dict[str, Any]:
        """Span denoising alone, then with both causal LMs."""
        return self._train("stage1")

    def stage2(self) -> dict[str, Any]:
        """Contrastive, matching, text to code and code to text, from the weights of stage 1."""
        return self._train("stage2")

    def _train(self, stage: str) -> dict[str, Any]:
        """`codet5p train` with the stage's gin file; losses of its first and last evaluation."""
        from codet5p_jax.training.metrics import read_records

        self._codet5p("train", *self._gin_arguments(stage))
        records = read_records(self.model_dirs[stage] / "metrics.jsonl")
        names = [name for o in self.configuration(stage)["objectives"] for name in o.losses]
        return {"losses": losses_before_and_after(records, names)}

    def _gin_arguments(self, stage: str) -> list[str]:
        file, bindings = self._gin(stage)
        return [f"--gin_file={file}", *(f"--gin.{binding}" for binding in bindings)]

    def _gin(self, stage: str) -> tuple[str, list[str]]:
        bindings = {
            "MODEL_DIR": str(self.model_dirs[stage]),
            "CACHE_DIR": str(self.cache_dir),
            "train.train.seed": self.seed,
        }
        if stage == "stage2":
            bindings["INITIAL_CHECKPOINT_PATH"] = str(self.model_dirs["stage1"])
        listed = [f"{name}={value!r}" for name, value in bindings.items()]
        return f"runs/quickstart_{stage}.gin", [*listed, *self.scale.bindings[stage]]

    def configuration(self, stage: str) -> dict[str, Any]:
        """The arguments of `train` that the stage's gin file builds."""
        from codet5p_jax.cli import gin_config
        from codet5p_jax.training.train import train

        file, bindings = self._gin(stage)
        return gin_config.load(train, [file], bindings).arguments

    def _objective(self, stage: str, name: str) -> Any:
        return next(o for o in self.configuration(stage)["objectives"] if o.name == name)

    # ------------------------------------------------------------------ evaluation

    def load(self, stage: str) -> tuple[Any, Any, "Tokenizer"]:
        """(network, weights, tokenizer) of a stage."""
        from codet5p_jax.data.tokenizer import Tokenizer
        from codet5p_jax.models.codet5p import CodeT5p
        from codet5p_jax.training.stored_weights import load_params

        params, config, tokenizer = load_params(self.model_dirs[stage])
        return CodeT5p(config), params, Tokenizer.load(tokenizer)

    def _encoder(self, progress: Callable[[int], None]) -> tuple["PairEncoder", "Tokenizer"]:
        from codet5p_jax.evaluation.encoder import PairEncoder

        network, params, tokenizer = self.load("stage2")
        trained = self._objective("stage2", "text_code_pairs")
        encoder = PairEncoder(
            network,
            params,
            tokenizer.special,
            text_length=trained.text_length,
            code_length=trained.code_length,
            temperature_bounds=trained.temperature_bounds,
            progress=progress,
        )
        return encoder, tokenizer

    def retrieval(self) -> dict[str, Any]:
        """Text-to-code retrieval on functions of the test modules."""
        from codet5p_jax.evaluation import held_out
        from codet5p_jax.evaluation.search import RERANKED

        test = held_out.select(self.pairs["test"], self.scale.candidates)
        validation = held_out.select(self.pairs["validation"], self.scale.candidates)
        rows = sum((2 + min(RERANKED, len(pairs))) * len(pairs) for pairs in (test, validation))
        with _bar("texts, functions and pairs of them", rows) as progress:
            encoder, tokenizer = self._encoder(progress)
            return held_out.retrieval_figures(encoder, tokenizer.encode, test, validation)

    def samples(self) -> dict[str, Any]:
        """Completions by stage 1 and docstrings by stage 2, of functions of the test modules."""
        import jax

        from codet5p_jax.decoding.sampling import Sampling
        from codet5p_jax.evaluation import held_out
        from codet5p_jax.evaluation import samples as writing

        short = [pair for pair in self.pairs["test"] if writing.is_presentable(pair["code"])]
        chosen = held_out.select(short, SAMPLES)
        key = jax.random.key(self.seed)
        # the paper's, for one sample (§5.1)
        nucleus = functools.partial(Sampling, temperature=0.2, top_p=0.95)
        with _spinner("writing"):
            clm = self._objective("stage1", "seq2seq_clm")
            beginnings, rests = zip(*map(writing.split_function, chosen), strict=True)
            completions = writing.completions(
                *self.load("stage1"),
                beginnings,
                inputs_length=clm.inputs_length,
                sampling=nucleus(max_length=clm.targets_length),
                key=key,
            )
            describe = self._objective("stage2", "code_to_text")
            codes = [pair["code"] for pair in chosen]
            docstrings = writing.docstrings(
                *self.load("stage2"),
                codes,
                inputs_length=describe.inputs_length,
                sampling=nucleus(max_length=describe.targets_length),
                key=key,
            )
        titles = [f"{pair['module']}.{pair['qualname']}" for pair in chosen]
        texts = [pair["text"] for pair in chosen]

        def together(given: Any, generated: Any, original: Any) -> list[dict[str, str]]:
            names = ("title", "given", "generated", "original")
            rows = zip(titles, given, generated, original, strict=True)
            return [dict(zip(names, row, strict=True)) for row in rows]

        return {
            "completions": together(beginnings, map(writing.cut_to_body, completions), rests),
            "docstrings": together(codes, docstrings, texts),
        }

    def index(self) -> dict[str, Any]:
        """Embeds every function, of training and held-out modules, into the model directory."""
        from codet5p_jax.cli.search_index import identity
        from codet5p_jax.evaluation import bm25, search

        documents = self.documents
        with _bar("functions", len(documents)) as progress:
            encoder, tokenizer = self._encoder(progress)
            codes = tokenizer.encode_batch([each.document.code for each in documents])
            index = search.SearchIndex(
                documents=[each.document for each in documents],
                embeddings=encoder.embed_codes(codes),
                words=bm25.build(each.words for each in documents),
                fusion_weight=self.found["retrieval"]["fusion_weight"],
                rerank_weight=self.found["retrieval"]["rerank_weight"],
                text_length=encoder.text_length,
                code_length=encoder.code_length,
                temperature_bounds=encoder.temperature_bounds,
                model=identity(self.model_dirs["stage2"], tokenizer),
            )
        path = search.save(index, self.model_dirs["stage2"])
        return {"functions": len(documents), "bytes": path.stat().st_size}

    # ------------------------------------------------------------------ results

    def summary(self) -> dict[str, Any]:
        """What was found, under the names of `summary.json`."""
        from codet5p_jax.models.codet5p import CodeT5p
        from codet5p_jax.models.params import count
        from codet5p_jax.training.model_dir import load_config

        config = load_config(self.model_dirs["stage2"])
        return {
            "retrieval": self.found["retrieval"],
            "losses": {k: v for stage in STAGES for k, v in self.found[stage]["losses"].items()},
            "samples": self.found["samples"],
            "corpus": self.found["read"],
            "model": {
                "parameters": count(CodeT5p(config).specs),
                "vocab_size": self.found["tokenizer"]["vocab_size"],
                "directories": {stage: str(path) for stage, path in self.model_dirs.items()},
            },
            "index": self.found["index"],
        }

    def write_report(self, summary: dict[str, Any]) -> None:
        """Writes `report.html`."""
        from codet5p_jax.evaluation.quickstart_report import make_report
        from codet5p_jax.evaluation.report import write
        from codet5p_jax.training.metrics import read_records
        from codet5p_jax.training.model_dir import ModelDir

        folders = {stage: ModelDir(path) for stage, path in self.model_dirs.items()}
        alone, _ = self.configuration("stage1")["phases"]
        report = make_report(
            summary,
            records={stage: read_records(folder.metrics) for stage, folder in folders.items()},
            phase_starts={"stage1": [(alone.steps, "with causal LMs")]},
            configurations={
                "summary.json": json.dumps(summary, indent=2, ensure_ascii=False),
                **{
                    f"Configuration of {stage}": folder.operative_config.read_text("utf-8")
                    for stage, folder in folders.items()
                },
            },
        )
        write(report, self.directory / "report.html")

    def _codet5p(self, *arguments: str) -> None:
        """Runs `codet5p ARGUMENTS` in a process of its own, on this terminal."""
        code = child.codet5p(*arguments)
        if code:
            raise ChildProcessError(
                f"`codet5p {shlex.join(arguments)}` ended with exit code {code}; its message is "
                "above. Started again, the quickstart goes on from there"
            )


def losses_before_and_after(
    records: list[dict[str, Any]], names: list[str]
) -> dict[str, dict[str, float]]:
    """Each loss at the first and the last evaluation of a run."""
    evaluations = [record for record in records if record["split"] == "validation"]
    if len(evaluations) < 2:
        raise ValueError(
            f"expected the losses of two evaluations or more, found {len(evaluations)}; set "
            "train.Evaluation.every"
        )
    first, last = evaluations[0], evaluations[-1]
    return {
        name: {"before": first[f"{name}/loss"], "after": last[f"{name}/loss"]} for name in names
    }


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    import codet5p_jax

    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "versions": {
            "codet5p_jax": codet5p_jax.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


@contextmanager
def _spinner(text: str) -> Iterator[None]:
    """Shows that something goes on."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def _bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields a function to call with the number of items just done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)


def _print_end(directory: Path, summary: dict[str, Any]) -> None:
    retrieval = summary["retrieval"]
    print("\nLosses on held-out modules, before and after:")
    for name, loss in summary["losses"].items():
        print(f"  {name:<16} {loss['before']:8.3f} {loss['after']:8.3f}")
    print(f"\nText-to-code retrieval among {retrieval['candidates']} held-out functions, MRR:")
    for name in ("mrr_chance", "mrr", "mrr_reranked", "mrr_bm25", "mrr_fused"):
        print(f"  {name:<16} {retrieval[name]:8.3f}")
    minutes = summary["seconds"]["total"] / 60
    least = "At least " if summary["seconds_partial"] else ""  # killed once, time unknown
    print(f"\n{least}{minutes:.1f} minutes, {summary['peak_memory_gb']:.1f} GB of memory.")
    if summary["smoke"]:
        print("This was --smoke: a few steps, so the figures mean nothing.")
    print(f"Report: {directory / 'report.html'}; figures: {directory / 'summary.json'}")
    model_dir = directory / "stage2"
    print(f'Next: codet5p search --model_dir {model_dir} "parse a date string"')
