"""Exit codes of `codet5p`, and the errors that mean the user's input rather than a defect."""

OK = 0
FAILURE = 1
USAGE = 2  # argparse's own
BAD_CONFIGURATION = 3


class ConfigError(ValueError):
    """The configuration is wrong; no data has been read, nothing written yet."""
