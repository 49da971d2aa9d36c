# Sourced by the other scripts: `make_environment EXTRAS [pip option…]` makes or reuses $VENV.
#
# $VENV    environment to use; default: .venv of the project.
# $PYTHON  interpreter to make it with; default: the first of Python 3.11 to 3.13 on the PATH.

PROJECT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$PROJECT/.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11, 3.12 or 3.13 is needed; tried: ${PYTHON:-python3 python3.11 python3.12 python3.13}." \
    "Set PYTHON to one." >&2
  return 1
}

make_environment() {
  local extras="$1" stamp log pip
  shift
  # Installed already, from the same requirements: nothing to do.
  stamp="$VENV/installed-$(cat "$PROJECT"/setup.py "$PROJECT"/constraints/*.txt <(echo "$extras" "$@") \
    | cksum | cut -d' ' -f1)"
  [[ -e "$stamp" ]] && return
  if [[ ! -x "$VENV/bin/python" ]]; then
    local python
    python="$(find_python)"
    echo "Making the environment $VENV with $("$python" --version)."
    "$python" -m venv "$VENV"
  fi
  echo "Installing the project and what it needs (about 3 GB; minutes the first time)."
  log="$VENV/install.log"
  "$VENV/bin/python" -m pip install --progress-bar off -e "$PROJECT$extras" "$@" \
    </dev/null >"$log" 2>&1 &
  pip=$!
  while kill -0 "$pip" 2>/dev/null; do
    # In a terminal, pip's latest line in place of the three hundred before it.
    [[ -t 1 ]] && printf '\r\033[K%.*s' "$((${COLUMNS:-80} - 1))" "$(tail -n 1 "$log")"
    sleep 0.5
  done
  [[ -t 1 ]] && printf '\r\033[K'
  if ! wait "$pip"; then
    tail -n 20 "$log" >&2
    echo "The installation failed; all of pip's output is in $log." >&2
    return 1
  fi
  touch "$stamp"
}
