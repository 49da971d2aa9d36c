#!/usr/bin/env bash
# Both pretraining stages of a small CodeT5+ on real code, on this machine.
#
# Makes .venv, installs the project into it and runs `codet5p quickstart`, to which the arguments go
# (`./launch/quickstart.sh --help`). See environment.sh for $PYTHON and $VENV.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment ""
exec "$VENV/bin/codet5p" quickstart "$@"
