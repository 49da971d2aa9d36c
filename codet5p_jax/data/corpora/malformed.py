"""Records that cannot be read: counted and reported; too many of them stop a run."""

import logging
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)


class TooManyMalformedError(ValueError):
    """More of a corpus is malformed than `max_malformed_share` allows."""


@dataclass
class Malformed:
    """Counts the records of one corpus. Pass one to a reader and look at it afterwards.

    Attributes:
      max_malformed_share: of all records; past it the reader stops with an error.
      grace: records to see before judging; a whole corpus is always judged at its end.
      reports: how many malformed records are logged with their place and kept in `examples`.
      seen: records read, malformed ones included.
      count: malformed ones.
      examples: `file:line: reason` of the first ones.
    """

    max_malformed_share: float = 0.01
    grace: int = 1000
    reports: int = 20
    seen: int = 0
    count: int = 0
    examples: list[str] = field(default_factory=list)

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
