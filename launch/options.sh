# shellcheck shell=bash
# Sourced by launcher.sh: the command line of a launcher, read and checked.

# parse "VERB…" "OPTION…" ARGUMENT…: sets $verb (the first by default), a variable for each option
# (`spot?` takes no value), and $arguments, what follows `--`, which is for `codet5p train`.
parse() {
  local verbs="$1" options="dry_run? xla_flags setup $2" option given=''
  verb="${verbs%% *}"
  shift 2
  while (($#)); do
    option="${1%%=*}"
    option="${option#--}"
    case "$1" in
      --help | -h)
        sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
        sed -n '/^# Options/,/^$/{s/^# \{0,1\}//p;}' "$PROJECT/launch/launcher.sh"
        exit
        ;;
      --)
        shift
        (($# == 0)) || arguments="$(quote "$@")"
        [[ ! " $*" =~ \ --(dry_run|coordinator|num_processes|process_id) ]] ||
          fail "--${BASH_REMATCH[1]} is the launcher's, before --"
        break
        ;;
      --*=*)
        [[ "$option" != *\? && " $options " == *" $option "* ]] || fail "there is no option --$option=…; options: $options"
        [[ -n "${1#*=}" ]] || fail "--$option=: expected a value"
        printf -v "$option" %s "${1#*=}"
        [[ "$1" != *$'\n'* ]] || fail "--$option: expected one line"
        ;;
      --*)
        [[ " $options " == *" $option? "* ]] || fail "--$option is no option without a value; options: $options"
        printf -v "$option" 1
        ;;
      *)
        [[ " $verbs " == *" $1 "* ]] || fail "unknown argument $1; expected one of: $verbs"
        [[ -z "$given" ]] || fail "both $given and $1; expected one of: $verbs"
        verb="$1" given="$1"
        ;;
    esac
    shift
  done
  [[ "$verb" != run || "$arguments" == *--gin_file[=\ ]* ]] ||
    fail "nothing to train: options of codet5p train, at least --gin_file=FILE, come after --"
  [[ "$arguments" != *$'\n'* ]] || fail "options of codet5p train are one line each"
  check
  # In a list of `&&`, `set -e` passes over all failures but the last.
  [[ -z "$setup" ]] || setup="{ ${setup%;}; }; [ \$? = 0 ] || exit 1"
  bash -n <<<"$setup" 2>/dev/null || fail "--setup: expected commands that others may follow, found $setup"
  [[ -z "$xla_flags" ]] || xla_environment "$xla_flags" >/dev/null
}

# Values that a shell or a scheduler would take for something else.
check() {
  local option
  for option in processes devices port nodes gpus jobs cpus slices restarts; do
    [[ -z "${!option:-}" || "${!option}" =~ ^[1-9][0-9]*$ || "$option ${!option}" == 'restarts 0' ]] ||
      fail "--$option=${!option}: expected a whole number, 1 or more"
  done
  ((${port:-1} <= 65535)) || fail "--port=$port: expected 65535 at most"
  [[ -z "${name:-}" || "$name" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    fail "--name=$name: expected letters, digits, '.', '_' and '-', such as stage1"
}

# require OPTION…: an error where one of them has no value.
require() {
  local option
  for option in "$@"; do
    [[ -n "${!option}" ]] || fail "--$option=… is missing (--help explains it)"
  done
}

# flags_for cuda|tpu [TYPE]: an error where --xla_flags names a set of other hardware. TYPE of a TPU
# begins with the chip: v5litepod-16, v5e:4x4.
flags_for() {
  local of=tpu chip="${2:-}"
  chip="${chip%%[-:]*}"
  [[ "$chip" != v5litepod && "$chip" != v5 ]] || chip=v5e # v5-lite-podslice
  [[ "$xla_flags" != h?00 ]] || of=cuda
  [[ "$verb" != run || -z "$xla_flags" || "$of" == "$1" ]] || fail "--xla_flags=$xla_flags is for $of, and this runs on $1"
  [[ "$verb" != run || -z "$xla_flags" || -z "$chip" || "$of" == cuda || "$xla_flags" == "$chip" ]] ||
    fail "--xla_flags=$xla_flags, and this runs on $chip"
}
