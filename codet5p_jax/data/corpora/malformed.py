"""Records that cannot be read: counted and reported; too many of them stop a run."""

import logging
import os
from dataclasses import dataclass, field

SHARE_VARIABLE = "CODET5P_MAX_MALFORMED_SHARE"
"""Environment variable of the limit where a reader is given none; `--max_malformed_share` sets it.
It is looked up here, so that it reaches every reader, also those of tasks of one's own."""

_log = logging.getLogger(__name__)


class TooManyMalformedError(ValueError):
    """More of a corpus is malformed than `max_malformed_share` allows."""


def share_of(variable: str, default: float) -> float:
    """A share from an environment variable.

    Raises:
      ValueError: it is not a number between 0 and 1.
    """
    value = os.environ.get(variable) or str(default)
    try:
        return check_share(float(value))
    except ValueError:
        raise ValueError(
            f"{variable}: expected a share from 0 to 1, such as {default}, found {value!r}"
        ) from None


def check_share(share: float, setting: str = "max_malformed_share") -> float:
    """`share`, if it is one; `setting` is how errors call it.

    Raises:
      ValueError: it is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{setting}: expected a share from 0 to 1, found {share}")
    return share


def intolerant() -> "Malformed":
    """For benchmarks, whose figures are of all records: the first malformed one is an error, unless
    `SHARE_VARIABLE` allows some."""
    share = share_of(SHARE_VARIABLE, 0.0)
    return Malformed(share, grace=1000 if share else 1)


@dataclass
class Malformed:
    """Counts the records of one corpus. Pass one to a reader and look at it afterwards.

    Attributes:
      max_malformed_share: of all records; past it the reader stops with an error. By default what
        `SHARE_VARIABLE` says, or 0.01.
      grace: records to see before judging; a whole corpus is always judged at its end.
      reports: how many malformed records are logged with their place and kept in `examples`.
      seen: records read, malformed ones included.
      count: malformed ones.
      examples: `file:line: reason` of the first ones.
    """

    max_malformed_share: float = field(default_factory=lambda: share_of(SHARE_VARIABLE, 0.01))
    grace: int = 1000
    reports: int = 20
    seen: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_share(self.max_malformed_share)

    def good(self) -> None:
        """Counts a record that could be read."""
        self.seen += 1

    def bad(self, place: str, reason: object) -> None:
        """Counts a malformed record at `place` (file and line, or row).

        Raises:
          TooManyMalformedError: too many of the records so far were malformed.
        """
        self.seen += 1
        self.reject(place, reason)

    def reject(self, place: str, reason: object) -> None:
        """As `bad`, for a record that was counted as good before."""
        self.count += 1
        if len(self.examples) < self.reports:
            report = f"{place}: {reason}"
            self.examples.append(report)
            _log.warning("malformed record skipped: %s", report)
        if self.seen >= self.grace:
            self.judge()

    def judge(self) -> None:
        """Raises TooManyMalformedError if the share is too high; readers call it at their end."""
        if self.count > self.max_malformed_share * self.seen:
            raise TooManyMalformedError(
                f"{self.count} of {self.seen} records are malformed, more than "
                f"max_malformed_share={self.max_malformed_share:g} allows; the first ones:\n  "
                + ";\n  ".join(self.examples[:5])
                + ".\nRepair or remove them, or raise max_malformed_share"
            )
