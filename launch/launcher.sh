# shellcheck shell=bash
# Sourced by the launchers. Each writes a plan, which is a shell script; `launch` runs it or, with
# --dry_run, prints it. So what is printed is what runs, and may be kept, changed and run by hand.
#
# Options of every launcher: --help, --dry_run, and
#   --xla_flags=NAME   a set of xla_flags.sh; default: none
#   --setup=COMMANDS   for every host to run before it trains, such as mounting a file system (SLURM:
#                      for the first, whose environment all get)

PROJECT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=SCRIPTDIR/xla_flags.sh
source "$PROJECT/launch/xla_flags.sh"
# shellcheck source=SCRIPTDIR/options.sh
source "$PROJECT/launch/options.sh"
# shellcheck disable=SC2034  # the launchers use them
verb='' dry_run='' xla_flags='' setup='' arguments=''

fail() { echo "$(basename "$0"): $*" >&2 && exit 2; }

# The words given, as a shell reads them.
quote() {
  local word text='' plain='^[A-Za-z0-9_@%+=:,./-]+$' escaped="'\\''"
  for word in "$@"; do
    [[ "$word" =~ $plain ]] || word="'${word//\'/$escaped}'"
    text+=" $word"
  done
  echo "${text# }"
}

# train_command PROGRAM COORDINATOR: the command that trains; COORDINATOR goes into it as it is.
train_command() {
  local environment=''
  [[ -z "$xla_flags" ]] || environment="env $(quote "$(xla_environment "$xla_flags")") "
  echo "$environment$1 train $arguments $2"
}

# install_commands EXTRA ENVIRONMENT SOURCE: makes or renews it. uv brings a Python of its own. Both
# paths are words of a shell, quoted where they have to be.
install_commands() {
  cat <<EOF
export PATH="\$HOME/.local/bin:\$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python 3.12 $2
uv pip install --quiet --python $2/bin/python --reinstall-package codet5p_jax "codet5p_jax[$1] @ file://"$3
EOF
}

launch() {
  local script
  script="#!/usr/bin/env bash"$'\n'"set -euo pipefail"$'\n'"$(plan)"
  [[ -z "$dry_run" ]] || { echo "$script" && exit; }
  exec bash -c "$script"
}
