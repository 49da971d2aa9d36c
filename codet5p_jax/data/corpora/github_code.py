"""The github-code data set: source files in Parquet, with repository and licence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codet5p_jax.data.corpora.files import require_files, require_folder, split_of
from codet5p_jax.data.corpora.languages import BY_KEY
from codet5p_jax.data.corpora.malformed import Malformed

SHARES: Mapping[str, float] = {"train": 0.995, "validation": 0.005}
_COLUMNS = ["code", "repo_name", "path", "language", "license"]
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

    Row groups are read one batch at a time, and rows of other languages are dropped before they
    become Python objects.

    Args:
      folder: searched for `*.parquet`, subfolders too.
      language: a key of `languages.BY_KEY` ("cpp").
      split: one of `shares`; None: all. A repository is in one split, by a hash of its name.
      keep: licences and repositories; by default the paper's licences.
      shares: split -> share of repositories.
      malformed: counts rows of this language without code or that are not UTF-8.
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
    for path in files:
        for number, row in _rows(path, language):
            place = f"{path}:row {number}"
            try:
                record = {name: _text(row[name], name) for name in row}
            except ValueError as error:
                malformed.bad(place, error)
                continue
            malformed.good()
            if split is not None and split_of(record["repo_name"], shares) != split:
                continue
            if keep.keeps(record["repo_name"], record["license"]):
                yield {**record, "language": language, "place": place}
    malformed.judge()


def _rows(path: Path, language: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number within the file, row) of one language; text columns as bytes."""
    name = BY_KEY[language].name.lower().encode()
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    with file:
        missing = set(_COLUMNS) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(
                f"{path}: expected the columns {', '.join(_COLUMNS)}; "
                f"missing: {', '.join(sorted(missing))}"
            )
        start = 0
        for batch in file.iter_batches(_BATCH, columns=_COLUMNS):
            languages = batch["language"].cast(pa.binary()).to_pylist()
            wanted = [i for i, value in enumerate(languages) if value and value.lower() == name]
            chosen = batch.drop_columns(["language"]).take(pa.array(wanted, pa.int64()))
            # As bytes: one row that is not UTF-8 is that row's fault, not the batch's.
            columns = {
                column: chosen[column].cast(pa.binary()).to_pylist()
                for column in chosen.schema.names
            }
            for i, position in enumerate(wanted):
                yield start + position, {column: values[i] for column, values in columns.items()}
            start += batch.num_rows


def _text(value: bytes | None, name: str) -> str:
    if value is None:
        raise ValueError(f"expected text in column {name!r}, got nothing")
    return value.decode("utf-8")
