#!/usr/bin/env bash
# Trains on Cloud TPU VMs, asked for as a queued resource.
#
#   launch/tpu.sh [run|logs|status|stop|delete] --name=NAME --zone=ZONE --type=v5litepod-16 \
#     -- --gin_file=runs/stage1_220m.gin …
#
# run           ask for the TPUs unless that is done, wait for them, copy the committed sources,
#               install them, start training on every worker, return
# logs          follow the output of the first worker, ~/NAME.log
# status        the state of the request
# stop          SIGTERM on all workers: the run saves and ends. The TPUs stay, and cost
# delete        give the TPUs back, with the disks of their VMs
#
# --name=NAME   of the request and of the run
# --zone=ZONE   --project=ID  (default: gcloud's)
# --type=TYPE   accelerator type: v4-32, v5litepod-16, v5p-128, v6e-256
# --slices=N    as many slices of that type (default: 1)
# --spot        cheaper, and may be taken away; --reserved: of a reservation
#
# The same command goes on: after a failure, and after spot TPUs were taken away, with new ones.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
source "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
name='' zone='' project='' type='' slices=1 spot='' reserved='' runtime=''
parse "run logs status stop delete" "name zone project type slices spot? reserved?" "$@"
require name zone
queued="gcloud compute tpus queued-resources"
where="$(quote "$name" --zone="$zone" ${project:+--project="$project"})"
all="--node=all --worker=all"

case "$type" in # https://docs.cloud.google.com/tpu/docs/runtimes
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
esac
flat='^(v5litepod|v6e)-(1|4|8|16|32|64|128|256)$' cores='^(v4|v5p)-[1-9][0-9]*$'
[[ "$verb" != run || "$type" =~ $flat ]] || [[ "$type" =~ $cores && $((${type#*-} % 8)) == 0 ]] ||
  fail "--type=$type: expected v4-N or v5p-N, N a multiple of 8, or v5litepod-N or v6e-N, N of 1, 4, 8, 16, 32, 64, 128, 256 (TPU7x: xpk.sh)"
flags_for tpu "$type"

ask() {
  local nodes="--node-id=$name"
  ((slices == 1)) || nodes="--node-count=$slices --node-prefix=$name"
  cat <<EOF
errors="\$(mktemp)"
state() { # nothing where there is no request
  $queued describe $where --format='value(state.state)' 2>"\$errors" ||
    grep -q NOT_FOUND "\$errors" || { cat "\$errors" >&2 && return 1; }
}
found="\$(state)"
# What was taken away or could not be had is asked for anew.
case "\$found" in
  SUSPENDING | SUSPENDED | FAILED) $queued delete $where --force --quiet && found='' ;;
esac
if [[ -z "\$found" ]]; then
  $queued create $where --accelerator-type=$(quote "$type") \\
    --runtime-version=$runtime $nodes${spot:+ --spot}${reserved:+ --reserved}
fi
for (( ; ; )); do
  found="\$(state)"
  [[ "\$found" != ACTIVE ]] || break
  echo "waiting for TPUs: \$found"
  case "\$found" in FAILED | SUSPEND* | '') exit 1 ;; esac
  sleep 30
done
rm "\$errors"
EOF
}

plan() {
  case "$verb" in
    run)
      ask
      copied_files "$name" tpu --coordinator=auto
      cat <<EOF
$queued scp "\$work"/codet5p_* $(quote "$name:") ${where#* } $all
$queued ssh $where $all --command='bash codet5p_install.sh'
$queued ssh $where $all --command='bash codet5p_start.sh'
EOF
      ;;
    logs) echo "$queued ssh $where --node=0 --worker=0 --command='tail -n 100 -F $name.log'" ;;
    status) echo "$queued describe $where --format='value(state.state)'" ;;
    stop) echo "$queued ssh $where $all --command=$(quote "$(stop_command "$name")")" ;;
    delete) echo "$queued delete $where --force" ;;
  esac
}
launch
