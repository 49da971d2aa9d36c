"""Types of command-line values, for argparse."""

import argparse
from pathlib import Path

from codet5p_jax.files import check_file


def positive(text: str) -> int:
    """An integer of 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {text!r}")
    return value


def natural(text: str) -> int:
    """An integer of 0 or more."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, got {text!r}")
    return value


def span(text: str) -> tuple[int, int]:
    """Two integers of 0 or more, the second one greater: `10:15`."""
    try:
        first, end = map(int, text.split(":"))
    except ValueError:
        first, end = 0, 0
    if not 0 <= first < end:
        raise argparse.ArgumentTypeError(f"expected FIRST:END such as 10:15, got {text!r}")
    return first, end


def seed(text: str) -> int:
    """An integer that JAX makes a key of without cutting it: 0 to 2**32 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**32 - 1, got {text!r}")
    return value


def seeds(text: str) -> tuple[int, ...]:
    """Different seeds, a comma apart: `0,1,2`."""
    found = tuple(map(seed, text.split(",")))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected different seeds such as 0,1,2, got {text!r}")
    return found


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def output_file(text: str) -> Path:
    """A file to write, in a folder that is there; one that exists is replaced."""
    path = Path(text)
    try:
        folder = path.resolve().parent
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        check_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # the last of links that go in circles
        raise argparse.ArgumentTypeError(str(error)) from None
    return path
