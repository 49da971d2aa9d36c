"""Fills the token cache: runs the SeqIO half of a mixture once, offline."""

import contextlib
import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from codet5p_jax.data import cache, fingerprint, seqio_tasks
from codet5p_jax.data.cache import CacheError, Manifest
from codet5p_jax.data.cache_writer import CacheWriter, share_examples, write_mixture
from codet5p_jax.data.seqio_tasks import seqio  # imported quietly there
from codet5p_jax.files import lock

_SHOW_EVERY = 0.2  # seconds between updates of the progress bar


@dataclass(frozen=True)
class PreparedSplit:
    """One split of one task.

    Attributes:
      how: `written`, `shared` with a task that has the same examples, or `kept` from before.
      seconds: spent on it.
    """

    manifest: Manifest
    how: str
    seconds: float

    def __str__(self) -> str:
        m = self.manifest
        line = f"{m.task}/{m.split}: {m.records:,} examples"
        if self.how != "written":
            return f"{line} [{self.how}{f', shards of {m.examples_in}' if m.examples_in else ''}]"
        lengths = (
            f"{name} {n['total']:,} (p50 {n['p50']}, p95 {n['p95']}, max {n['max']})"
            for name, n in m.lengths.items()
        )
        return f"{line}, {m.records / self.seconds:,.0f}/s; {', '.join(lengths)}"


@dataclass(frozen=True)
class Summary:
    """What `prepare` left in the cache."""

    mixture: str
    cache_dir: Path
    splits: tuple[PreparedSplit, ...]


def prepare(
    mixture_or_task: str | seqio.Task | seqio.Mixture,
    cache_dir: str | Path,
    splits: Sequence[str] | None = None,
    *,
    epochs: int = 1,
    sequence_length: Mapping[str, int] | None = None,
    rebuild: bool = False,
    console: Console | None = None,
) -> Summary:
    """Caches every task of a mixture, and the mixture itself.

    Each task and split is published when it is complete, and kept by a later call: a run that was
    interrupted goes on with the first one that is missing.

    Args:
      mixture_or_task: or its name in SeqIO's registry.
      cache_dir: created where it is missing.
      splits: by default those that all tasks have.
      epochs: how many times a task from elsewhere is materialised, its preprocessors seeded anew;
        they repeat in training. Tasks of this project draw new noise in every epoch anyway.
      sequence_length: for the preprocessors of tasks from elsewhere, as in `seqio.get_dataset`.
      rebuild: write again what is there, be it stale or not.
      console: where progress and one line a split are shown; by default standard error.

    Raises:
      CacheError: the cache is stale (the message names what changed), the disk is full, a split
        has no examples.
      OSError: another process is preparing in that folder.
      ValueError: unknown name or split, or tasks that cannot be mixed.
    """
    provider = _provider(mixture_or_task, Path(cache_dir))
    tasks = seqio.get_subtasks(provider)
    splits = _splits(provider.name, tasks, splits)
    _check(tasks)
    console = console or Console(stderr=True)
    cache_dir = Path(cache_dir)
    done = []
    with _only_process(cache_dir):
        written: set[tuple[str, str]] = set()
        for task in tasks:
            parts = seqio_tasks.fingerprint_of(task, epochs=epochs, sequence_length=sequence_length)
            for split in splits:
                start = time.monotonic()
                how, manifest = _reuse(cache_dir, task.name, split, parts, rebuild, written)
                if manifest is None:
                    with _progress(console) as progress:
                        examples = _examples(task, split, epochs, sequence_length, progress)
                        manifest = _write(cache_dir, task.name, split, parts, examples)
                    written.add((task.name, split))
                done.append(PreparedSplit(manifest, how, time.monotonic() - start))
                console.print(str(done[-1]), highlight=False, markup=False, soft_wrap=True)
        _write_mixture(cache_dir, provider, tasks)
    return Summary(provider.name, cache_dir, tuple(done))


def _write(
    cache_dir: Path,
    task: str,
    split: str,
    parts: Mapping[str, str],
    epochs: Iterator[Iterator[dict[str, np.ndarray]]],
) -> Manifest:
    with CacheWriter(cache_dir, task, split, parts) as writer:
        for i, examples in enumerate(epochs):
            if i:
                writer.end_epoch()
            for example in examples:
                writer.write(example)
    return writer.manifest


def _examples(
    task: seqio.Task,
    split: str,
    epochs: int,
    sequence_length: Mapping[str, int] | None,
    progress: Progress,
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Examples of each epoch; advances the progress bar while they are taken."""
    foreign = not isinstance(task, seqio_tasks.ObjectiveTask)
    for epoch in range(epochs if foreign else 1):
        of = f" {epoch + 1}/{epochs}" if foreign and epochs > 1 else ""
        # The number of raw examples: preprocessors may drop or split some, so an estimate.
        total = task.num_input_examples(split)
        bar = progress.add_task(f"{task.name}/{split}{of}", total=total)
        examples = seqio_tasks.cached_examples(
            task, split, epoch=epoch, sequence_length=sequence_length
        )
        yield _advance(examples, progress, bar)


def _advance(examples: Iterator, progress: Progress, bar: TaskID) -> Iterator:
    shown = time.monotonic()
    count = 0
    for count, example in enumerate(examples, 1):
        yield example
        if time.monotonic() - shown > _SHOW_EVERY:
            shown = time.monotonic()
            progress.update(bar, completed=count)
    progress.update(bar, completed=count, total=count)


def _reuse(
    cache_dir: Path,
    task: str,
    split: str,
    parts: Mapping[str, str],
    rebuild: bool,
    written: set[tuple[str, str]],
) -> tuple[str, Manifest | None]:
    """A cached split to use instead of writing one, and how it is used; None: it is to be written.

    `written` are the splits that this run wrote itself, which `rebuild` does not write again.
    """
    if not rebuild:
        manifest = cache.read_manifest(cache_dir, task, split)
        if manifest is not None:
            changed = fingerprint.changes(manifest.fingerprint, parts)
            if changed:
                raise CacheError(
                    f"the cache of task {task!r}, split {split!r}, in {cache_dir} was made "
                    f"otherwise: {'; '.join(changed)}. Pass --rebuild to make it again, or "
                    "another --cache_dir to keep it"
                )
            return "kept", cache.open_task(cache_dir, task, split).manifest
    for path in sorted(cache_dir.glob(f"*/{split}/manifest.json")):
        holder = path.parent.parent.name
        if holder == task or (rebuild and (holder, split) not in written):
            continue
        with contextlib.suppress(CacheError):  # another task's trouble
            held = cache.read_manifest(cache_dir, holder, split)
            if held is not None and held.examples_in is None and held.fingerprint == parts:
                cache.open_task(cache_dir, holder, split)
                return "shared", share_examples(cache_dir, held, task)
    return "written", None


def _write_mixture(
    cache_dir: Path, provider: seqio.Task | seqio.Mixture, tasks: Sequence[seqio.Task]
) -> None:
    vocabulary = seqio_tasks.vocabulary_of(tasks[0])
    rate_of = provider.get_rate if isinstance(provider, seqio.Mixture) else lambda _: 1
    write_mixture(
        cache_dir,
        provider.name,
        [(t.name, seqio_tasks.objective_of(t), float(rate_of(t))) for t in tasks],
        special=seqio_tasks.special_tokens_of(vocabulary),
        vocab_size=vocabulary.vocab_size,
        tokenizer_digest=seqio_tasks.vocabulary_digest(tasks[0]),
        save_tokenizer=lambda folder: seqio_tasks.save_vocabulary(vocabulary, folder),
    )


def _provider(
    mixture_or_task: str | seqio.Task | seqio.Mixture, cache_dir: Path
) -> seqio.Task | seqio.Mixture:
    if not isinstance(mixture_or_task, str):
        return mixture_or_task
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if mixture_or_task not in known:
        # Mixtures of modules that are not imported here are known if they were prepared before.
        known += [path.stem for path in (cache_dir / cache.MIXTURES).glob("*.json")]
        near = difflib.get_close_matches(mixture_or_task, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "is its module imported (--module)?"
        raise ValueError(f"no mixture or task {mixture_or_task!r} is registered; {hint}")
    return seqio.get_mixture_or_task(mixture_or_task)


def _splits(
    name: str, tasks: Sequence[seqio.Task], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    common = [s for s in tasks[0].splits if all(s in task.splits for task in tasks)]
    missing = [split for split in wanted or () if split not in common]
    if missing or not common:
        raise ValueError(
            f"{name!r}: expected splits among {', '.join(common) or 'none'}, which all of its "
            f"tasks have, found {', '.join(wanted or ()) or 'none given'}"
        )
    return tuple(wanted or common)


def _check(tasks: Sequence[seqio.Task]) -> None:
    if len({seqio_tasks.vocabulary_digest(task) for task in tasks}) > 1:
        raise ValueError(
            f"expected one vocabulary for {', '.join(t.name for t in tasks)}, found several; the "
            "tasks of a mixture train one embedding"
        )
    taken = [t.name for t in tasks if t.name in (cache.MIXTURES, cache.TOKENIZERS)]
    if taken:
        raise ValueError(f"the cache keeps its own files in {taken[0]!r}; rename that task")


@contextlib.contextmanager
def _only_process(cache_dir: Path) -> Iterator[None]:
    """Keeps other processes from preparing in the same folder."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        file = (cache_dir / ".lock").open("a")
    except OSError as error:
        raise CacheError(
            f"could not write {cache_dir} ({error}); choose another --cache_dir"
        ) from error
    with file:
        lock(file, f"another process is preparing {cache_dir}; wait for it to end")
        yield


class _Rate(ProgressColumn):
    """`1,234/s`."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("examples"),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
