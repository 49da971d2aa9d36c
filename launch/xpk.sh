#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through xpk, which layers the committed sources onto an image.
#
#   launch/xpk.sh [run|logs|status|stop] --name=NAME --cluster=CLUSTER --zone=ZONE \
#     --type=v5litepod-16 -- --gin_file=runs/stage1_220m.gin …
#
# run            build the image, submit the workload
# logs           follow the output of the first host
# status         its pods
# stop           SIGTERM, five minutes, the end
#
# --name=NAME    of the workload
# --cluster=…    made by `xpk cluster create`; --zone=ZONE  --project=ID (default: gcloud's)
# --type=TYPE    of xpk: v5litepod-16, v5p-128, v6e-256, tpu7x-16
# --storage=NAME of `xpk storage`, where MODEL_DIR and CACHE_DIR are
# --slices=N     (default: 1)
# --restarts=N   how often the job is started anew after a failure (default: 50)
# --image=IMAGE  to layer the sources onto (default: python:3.12)
#
# Nodes that fail or are drained start the run anew. So does the same command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gke.sh"
name='' cluster='' zone='' project='' type='' storage='' slices=1 restarts=50 image=python:3.12
parse "run logs status stop" "name cluster zone project type storage slices restarts image" "$@"
require name cluster zone
kubernetes_name "$name"
[[ "$verb" != run ]] || require type storage
flags_for tpu "$type"

plan() {
  local command
  enter_cluster "$cluster" "${zone%-*}" "$project"
  if [[ "$verb" != run ]]; then
    job_verbs "$verb" "$name"
    return
  fi
  unless_running "$name"
  # xpk wants one line, and forwards SIGTERM to what that line becomes.
  command="set -e; ${setup:+$setup; }pip install --quiet '.[tpu]'; exec $(train_command codet5p "$on_gke")"
  # By itself xpk starts a run anew after 42 and 127 to 255, of which 143 is a drained node's.
  cat <<PLAN
work="\$(mktemp -d)"
trap 'rm -rf "\$work"' EXIT
git -C $(quote "$PROJECT") archive HEAD | tar -x -C "\$work"
xpk workload create --workload=$name $(quote --cluster="$cluster" --zone="$zone" ${project:+--project="$project"}) \\
  $(quote --tpu-type="$type") --num-slices=$slices $(quote --storage="$storage") \\
  --max-restarts=$restarts --restart-on-exit-codes=1 --termination-grace-period-seconds=300 \\
  $(quote --base-docker-image="$image") --script-dir="\$work" \\
  --command=$(quote "$command")
PLAN
}
launch
