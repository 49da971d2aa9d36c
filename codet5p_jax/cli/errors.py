"""Exit codes of `codet5p`, and the errors that mean the user's input rather than a defect."""

from collections.abc import Iterator
from contextlib import contextmanager

OK = 0
FAILURE = 1
USAGE = 2  # argparse's own
BAD_CONFIGURATION = 3
TERMINATED = 143  # 128 + SIGTERM, as of a process that a signal ends


class ConfigError(ValueError):
    """The configuration is wrong; no data has been read, nothing written yet."""


@contextmanager
def configuration() -> Iterator[None]:
    """What is wrong inside is wrong with the configuration: nothing else is looked at there."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
