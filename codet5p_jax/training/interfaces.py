"""The objective as training sees it.

`objectives.base.Objective` is a protocol for type checkers only; where annotations are checked at
run time (in tests), anything passes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codet5p_jax.objectives.base import Objective
else:
    Objective = Any

__all__ = ["Objective"]
