"""What every metric asks of its arguments."""

from collections.abc import Sequence


def check_pairs(references: Sequence[object], predictions: Sequence[object]) -> None:
    """Raises ValueError unless there is one prediction for each of one or more references."""
    if len(references) != len(predictions):
        raise ValueError(
            f"expected a prediction for each of {len(references)} references, "
            f"found {len(predictions)} predictions"
        )
    if not references:
        raise ValueError("expected one reference or more, found none: no mean is defined")
