"""Silence for TensorFlow's start."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hides what C++ code writes to standard error, or shows it if the block raises.

    TensorFlow 2.21 writes some lines on import, and an error on machines without CUDA, before it
    reads TF_CPP_MIN_LOG_LEVEL; no setting of its own stops them.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
