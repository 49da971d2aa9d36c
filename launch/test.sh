#!/usr/bin/env bash
# Runs the tests in .venv, which it makes or reuses. Arguments go to pytest:
#
#   ./launch/test.sh                      everything but what takes minutes
#   ./launch/test.sh -m slow              only that
#   ./launch/test.sh -n 8                 on more than two cores
#   ./launch/test.sh tests/models -k rope
#
# See environment.sh for $PYTHON and $VENV.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment "[test,torch,sentence-transformers,metrics,faiss,precompile]" --constraint "$PROJECT/constraints/test.txt"
cd "$PROJECT"
# A file's tests stay in one process: what they share is made once.
exec "$VENV/bin/python" -m pytest -m "not slow" -n 2 --dist loadfile "$@"
