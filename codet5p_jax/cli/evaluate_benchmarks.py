"""`codet5p evaluate --benchmark`: a model, or predictions of one, through benchmarks."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from codet5p_jax.cli import data_options
from codet5p_jax.cli.arguments import natural, positive, seed
from codet5p_jax.cli.errors import ConfigError
from codet5p_jax.data.corpora.finetuning.retrieved import SEPARATOR_VARIABLE

if TYPE_CHECKING:
    from codet5p_jax.evaluation.benchmarks.base import (
        Benchmark,
        Data,
        Model,
        Prediction,
        Settings,
    )

# Settings that a run may go on with others of; more texts are drawn besides those there are.
_FREE = ("batch_size", "samples", "code_t", "allow_weaker_sandbox")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument_group("benchmarks (docs/benchmarks.md)").add_argument
    add("--benchmark", metavar="NAME,…", help="benchmarks to take a model through; `list` has them")
    add("--checkpoint", type=Path, metavar="DIR", help="model directory, or a checkpoint in it")
    add("--finetune_dir", type=Path, metavar="DIR", help="folder with a folder of each benchmark")
    add("--predictions", type=Path, metavar="FILE", help="score these, without a model")
    add(
        "--out",
        type=Path,
        default=Path("benchmarks_run"),
        metavar="DIR",
        help="predictions and scores; a run goes on where it stopped (default: %(default)s)",
    )
    add("--limit", type=positive, metavar="N", help="the first N problems of each")
    add("--size", metavar="SIZE", help="of the paper's figures (default: of the checkpoint)")
    add("--samples", type=positive, help="programs of each problem")
    add("--beams", type=positive, help="of beam search; 1: none")
    add("--temperature", type=_not_negative, help="of sampling; 0: the most likely token")
    add("--top_p", type=_probability, help="of sampling")
    add("--max_tokens", type=positive, help="written at most")
    add("--batch_size", type=positive, default=16, help="(default: %(default)s)")
    add("--seed", type=seed, default=0, help="of sampling (default: %(default)s)")
    add(
        "--rerank",
        type=natural,
        default=0,
        metavar="K",
        help="the matching head orders the first K candidates of a search (released script: 32)",
    )
    add(
        "--code_t",
        type=natural,
        default=0,
        metavar="N",
        help="let the model write N texts with tests for each problem, and rank programs by how "
        "many agree on how many tests (CodeT; its own: 100)",
    )
    add(
        "--code_separator",
        metavar="TEXT",
        default=os.environ.get(SEPARATOR_VARIABLE) or None,
        help="what [SEP] is between a text and code found for it (default: </s>)",
    )
    add(
        "--allow_weaker_sandbox",
        action="store_true",
        help="run programs even where layers of the sandbox are missing (docs/sandbox.md)",
    )


def run(args: argparse.Namespace) -> None:
    """Checks everything, then predicts and scores, and prints the table."""
    from codet5p_jax.evaluation.benchmarks import registry, table
    from codet5p_jax.evaluation.benchmarks.base import Model
    from codet5p_jax.evaluation.benchmarks.run import claimed
    from codet5p_jax.evaluation.benchmarks.run import run as run_one

    if args.benchmark == "list":
        width = max(map(len, registry.BENCHMARKS)) + 2
        for benchmark in registry.BENCHMARKS.values():
            print(f"{benchmark.name:{width}}{benchmark.about}")
        return
    with ExitStack() as stack:
        with _configuration():
            plan = _plan(args)
            for name, identity in plan.identities.items():
                stack.enter_context(claimed(args.out / name, identity))
        source = plan.source
        if isinstance(source, Model):
            source = _with_weights(source, args.checkpoint)
        text = ""
        for benchmark in plan.benchmarks:
            print(f"{benchmark.name}: {benchmark.about}", file=sys.stderr, flush=True)
            run_one(
                benchmark,
                plan.data[benchmark.name],
                plan.settings,
                args.out / benchmark.name,
                source=source,
                limit=args.limit,
                identity=plan.identities[benchmark.name],
                size=plan.size,
            )
            text = table.write(args.out, registry.BENCHMARKS)
    print(text)
    print(f"{args.out}: scores.json, table.md, table.html", file=sys.stderr)


class _Plan(NamedTuple):
    """What is going to run, checked; by name of benchmark, its data and what its predictions
    depend on."""

    benchmarks: "list[Benchmark]"
    data: "dict[str, Data]"
    settings: "Settings"
    source: "Model | list[Prediction]"  # the model without its weights
    size: str | None
    identities: dict[str, dict[str, Any]]


def _plan(args: argparse.Namespace) -> _Plan:
    from codet5p_jax.evaluation.benchmarks.base import Settings, matched
    from codet5p_jax.evaluation.benchmarks.published import size_of
    from codet5p_jax.evaluation.benchmarks.registry import find

    benchmarks = find(args.benchmark)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    _check_options(args, benchmarks, settings)
    holds = "a folder of each benchmark (docs/benchmarks.md)"
    root, data = data_options.finetune_folder(args, holds), {}
    for benchmark in benchmarks:
        data[benchmark.name] = benchmark.load(root, args.split)
        benchmark.check_scoring(data[benchmark.name].first(args.limit), settings)
    size = args.size
    if args.predictions is None:
        source, of = _model(args.checkpoint, benchmarks, settings)
        size = size or size_of(source.network.config)
        for benchmark in benchmarks:
            asked = data[benchmark.name].first(args.limit)
            benchmark.check_lengths(source, asked, settings)
    else:
        (benchmark,), of = benchmarks, {"of": str(args.predictions.resolve())}
        source = benchmark.parse(args.predictions, data[benchmark.name])
        matched(benchmark, data[benchmark.name].first(args.limit), source, str(args.predictions))
    chosen = {name: v for name, v in asdict(settings).items() if name not in _FREE}
    identities = {}
    for benchmark in benchmarks:
        found = {"split": args.split or benchmark.split, **chosen}
        found = {name: value for name, value in found.items() if name not in benchmark.unused}
        found["data"] = data[benchmark.name].fingerprint()
        identities[benchmark.name] = {**of, **found}
    return _Plan(benchmarks, data, settings, source, size, identities)


@contextmanager
def _configuration() -> Iterator[None]:
    """What is wrong in here is the configuration: nothing has been predicted or written."""
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # the sandbox's is the last
        raise ConfigError(str(error)) from error


def _check_options(
    args: argparse.Namespace, benchmarks: "list[Benchmark]", settings: "Settings"
) -> None:
    from codet5p_jax.evaluation.benchmarks.published import SIZES

    if args.gin_file or args.gin_bindings:
        raise ConfigError("--benchmark takes no gin; --checkpoint says which model")
    if (args.checkpoint is None) == (args.predictions is None):
        raise ConfigError("--benchmark: expected either --checkpoint or --predictions")
    if args.predictions is not None and args.code_t:
        raise ConfigError("--code_t needs --checkpoint: the model that writes tests")
    if args.predictions is not None and len(benchmarks) > 1:
        raise ConfigError(f"--predictions is of one benchmark, --benchmark names {len(benchmarks)}")
    if args.size not in (None, *SIZES):
        raise ConfigError(f"--size: expected one of {', '.join(SIZES)}, got {args.size!r}")
    for benchmark in benchmarks:
        if settings.code_t and not benchmark.also(settings):
            raise ConfigError(f"--code_t: {benchmark.name} has no prompt for tests")


def _model(
    checkpoint: Path, benchmarks: "list[Benchmark]", settings: "Settings"
) -> "tuple[Model, dict[str, str]]":
    """The network without its weights, checked, and which these are."""
    from codet5p_jax.data.tokenizer import Tokenizer
    from codet5p_jax.evaluation.benchmarks.base import Model
    from codet5p_jax.models.codet5p import CodeT5p
    from codet5p_jax.sharding import all_devices
    from codet5p_jax.training.checkpoint_files import (
        checkpoint_path,
        fingerprint,
        model_dir_of,
    )
    from codet5p_jax.training.model_dir import load_config
    from codet5p_jax.training.stored_weights import with_ends

    directory = model_dir_of(checkpoint)
    network = CodeT5p(load_config(directory.root))
    tokenizer = Tokenizer.load(directory.tokenizer)
    special = with_ends(checkpoint, tokenizer.special)
    model = Model(network, None, tokenizer, special, all_devices(settings.batch_size))
    for benchmark in benchmarks:
        benchmark.check_model(model, settings)
    path = checkpoint_path(checkpoint)
    which = {"of": str(path), "weights": fingerprint(path), "tokenizer": tokenizer.fingerprint}
    return model, which


def _with_weights(model: "Model", checkpoint: Path) -> "Model":
    from dataclasses import replace

    from codet5p_jax.training.stored_weights import load_params

    return replace(model, params=load_params(checkpoint, model.mesh)[0])


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value


def _probability(text: str) -> float:
    value = _not_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, of 1 at most, got {text!r}")
    return value
