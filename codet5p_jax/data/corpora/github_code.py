"""The github-code data set: source files in Parquet, with repository and licence."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from codet5p_jax.data.corpora.files import require_files, require_folder, split_of
from codet5p_jax.data.corpora.languages import BY_KEY
from codet5p_jax.data.corpora.malformed import Malformed

SHARES: Mapping[str, float] = {"train": 0.995, "validation": 0.005}
_LABELS = ["language", "repo_name", "license"]  # decide whether a row is read
_TEXTS = ["code", "path"]
_BATCH = 1024


@dataclass(frozen=True)
class GithubCodeFilter:
    """Which files are kept (paper §4, footnote on licences).

    Attributes:
      licenses: exact values of the `license` column; None keeps all. The paper writes "apache-2",
        the data set "apache-2.0"; both are here.
      excluded_repos: values of `repo_name`, compared without regard to case. The paper leaves out
        every repository that occurs in CodeSearchNet or a downstream task.
      min_tokens, max_tokens: of a file, inclusive; applied after tokenisation, by the tasks. The
        paper does not say by which tokenizer.
    """

    licenses: tuple[str, ...] | None = (
        "mit",
        "apache-2",
        "apache-2.0",
        "bsd-3-clause",
        "bsd-2-clause",
        "cc0-1.0",
        "unlicense",
        "isc",
    )
    excluded_repos: frozenset[str] = frozenset()
    min_tokens: int = 50
    max_tokens: int = 2000

    def __post_init__(self) -> None:
        lowered = frozenset(repo.lower() for repo in self.excluded_repos)
        object.__setattr__(self, "excluded_repos", lowered)

    def keeps(self, repo: str, license_name: str) -> bool:
        """Whether a file with this repository and licence is kept."""
        licensed = self.licenses is None or license_name in self.licenses
        return licensed and repo.lower() not in self.excluded_repos


def parquet_files(folder: str | Path, setting: str = "folder") -> list[Path]:
    """Every `*.parquet` in `folder` and below, sorted; none is an error."""
    root = require_folder(folder, setting)
    return require_files(list(root.rglob("*.parquet")), f"*.parquet in {root}", setting)


def read_repo_list(path: str | Path) -> frozenset[str]:
    """Repository names from a text file, one `owner/name` a line; `#` starts a comment."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text("utf-8").splitlines())
    return frozenset(line for line in lines if line)


def github_code_files(
    folder: str | Path,
    language: str,
    split: str | None = None,
    *,
    keep: GithubCodeFilter | None = None,
    shares: Mapping[str, float] = SHARES,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Files of one language: `code`, `repo_name`, `path`, `license`, `language`, `place`.

    Language, repository and licence are read first. The code of a row group is read only if one of
    its rows is wanted, a batch at a time, and only wanted rows become Python objects.

    Args:
      folder: searched for `*.parquet`, subfolders too.
      language: a key of `languages.BY_KEY` ("cpp").
      split: one of `shares`; None: all. A repository is in one split, by a hash of its name.
      keep: licences and repositories; by default the paper's licences.
      shares: split -> share of repositories.
      malformed: counts rows of this language in which something is missing or not UTF-8; code is
        looked at in files that are kept.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if there is no such folder or no Parquet file in it.
      ValueError: if a file is not Parquet, or lacks a column.
    """
    if language not in BY_KEY:
        raise ValueError(f"expected a language among {', '.join(BY_KEY)}, got {language!r}")
    if split is not None and split not in shares:
        raise ValueError(f"expected a split among {', '.join(shares)}, got {split!r}")
    files = parquet_files(folder, setting)
    return _files(
        files, language, split, keep or GithubCodeFilter(), shares, malformed or Malformed()
    )


def _files(
    files: list[Path],
    language: str,
    split: str | None,
    keep: GithubCodeFilter,
    shares: Mapping[str, float],
    malformed: Malformed,
) -> Iterator[dict[str, str]]:
    def wanted(repo: str, license_name: str) -> bool:
        return (split is None or split_of(repo, shares) == split) and keep.keeps(repo, license_name)

    for path in files:
        with _open(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                chosen = _choose(file, group, language, wanted, f"{path}:row", start, malformed)
                if chosen:
                    texts = _texts(file, group, chosen)
                    for (position, labels), row in zip(chosen.items(), texts, strict=True):
                        place = f"{path}:row {start + position}"
                        try:
                            record = labels | {name: _text(row[name], name) for name in row}
                        except ValueError as error:
                            malformed.bad(place, error)
                            continue
                        malformed.good()
                        yield {**record, "language": language, "place": place}
                start += file.metadata.row_group(group).num_rows
    malformed.judge()


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    columns = {*_LABELS, *_TEXTS}
    missing = columns - set(file.schema_arrow.names)
    if missing:
        file.close()
        raise ValueError(
            f"{path}: expected the columns {', '.join(sorted(columns))}; "
            f"missing: {', '.join(sorted(missing))}"
        )
    return file


def _choose(
    file: pq.ParquetFile,
    group: int,
    language: str,
    wanted: Callable[[str, str], bool],
    where: str,
    start: int,
    malformed: Malformed,
) -> dict[int, dict[str, str]]:
    """Position within a row group -> repository and licence, of the rows to read.

    Reads the short columns alone: code is a thousand times as long, and most groups have little of
    a language that is rare, or of a split that is small.
    """
    name = BY_KEY[language].name.lower().encode()
    table = file.read_row_group(group, columns=_LABELS)
    # As bytes: one row that is not UTF-8 is that row's fault, not the group's.
    languages, repos, licenses = (table[c].cast(pa.binary()).to_pylist() for c in _LABELS)
    chosen = {}
    for i, value in enumerate(languages):
        if not value or value.lower() != name:
            continue
        try:
            repo, license_name = _text(repos[i], "repo_name"), _text(licenses[i], "license")
        except ValueError as error:
            malformed.bad(f"{where} {start + i}", error)
            continue
        if wanted(repo, license_name):
            chosen[i] = {"repo_name": repo, "license": license_name}
    return chosen


def _texts(
    file: pq.ParquetFile, group: int, positions: Iterable[int]
) -> Iterator[dict[str, bytes | None]]:
    """The long columns of some rows of a row group, in order; a batch at a time, for groups can be
    larger than memory."""
    sorted_positions = np.fromiter(positions, np.int64)
    start = 0
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=_TEXTS):
        first, last = np.searchsorted(sorted_positions, (start, start + batch.num_rows))
        rows = batch.take(pa.array(sorted_positions[first:last] - start))
        yield from pa.table({name: rows[name].cast(pa.binary()) for name in _TEXTS}).to_pylist()
        start += batch.num_rows


def _text(value: bytes | None, name: str) -> str:
    if value is None:
        raise ValueError(f"expected text in column {name!r}, got nothing")
    return value.decode("utf-8")
