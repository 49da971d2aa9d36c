#!/usr/bin/env bash
# Trains in several processes on this machine.
#
#   launch/local.sh --processes=2 --devices=4 --logs=logs -- --gin_file=runs/quickstart_stage1.gin …
#
# --processes=N   how many
# --devices=N     virtual CPU devices of each; without it, process i has GPU i to itself
# --logs=DIR      process_0.log, process_1.log, …
# --port=N        where process 0 listens (default: 8476)
# --program=PATH  codet5p (default: the one of .venv)
#
# Ctrl-C, SIGTERM and SIGHUP make every process save and exit; SIGUSR1 makes those that train trace a
# few steps (docs/watching.md), and ends others. The same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
processes='' devices='' logs='' port=8476 program="$PROJECT/.venv/bin/codet5p"
parse run "processes devices logs port program" "$@"
require processes logs
[[ -z "$devices" || -z "$xla_flags" ]] || fail "--devices are CPUs, --xla_flags are for accelerators"

plan() {
  local i where
  [[ -z "$setup" ]] || echo "$setup"
  echo "mkdir -p $(quote "$logs")"
  cat <<'EOF'
pids=() told=''
tell() { told=1 && kill "-$1" "${pids[@]}" 2>/dev/null || true; }
trap 'tell TERM' INT TERM
trap 'tell USR1' USR1
trap '' HUP # the processes hear of it as TERM
EOF
  for ((i = 0; i < processes; i++)); do
    where="CUDA_VISIBLE_DEVICES=$i"
    [[ -z "$devices" ]] || where="JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=$devices"
    cat <<EOF
$where $(train_command "$(quote "$program")" \
      "--coordinator=127.0.0.1:$port --num_processes=$processes --process_id=$i") \\
  >>$(quote "$logs/process_$i.log") 2>&1 </dev/null &
pids+=("\$!")
EOF
  done
  cat <<'EOF'
trap 'tell TERM' HUP
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while [[ -n "$told" ]]; do # a signal ended the waiting, not the process
    told='' code=0
    wait "$pid" || code=$?
  done
  ((code == 0)) || status=$code
done
EOF
  echo "((status == 0)) || tail -n 5 $(quote "$logs")/process_*.log >&2"
  echo "exit \"\$status\""
}
launch
