#!/usr/bin/env bash
# Trains on machines that SkyPilot finds, as a managed job: machines taken away are replaced.
#
#   launch/sky.sh [run|logs|status|stop] --name=NAME --accelerators=H100:8 --nodes=2 \
#     --bucket=gs://BUCKET -- --gin_file=runs/stage1_220m.gin --gin.MODEL_DIR="'/shared/run'" …
#
# run                 hand the job in; SkyPilot finds machines, installs this folder, trains
# logs, status, stop  of the job
#
# --name=NAME         of the job
# --accelerators=A:N  of each machine: H100:8, H200:8; or tpu-v6e-16, a whole slice
# --nodes=N           machines of GPUs (default: 1)
# --bucket=URL        seen by all machines as /shared: MODEL_DIR and CACHE_DIR belong there
# --spot              cheaper, and may be taken away
# --infra=WHERE       gcp/us-central1, aws, k8s (default: the cheapest)
#
# After a failure of the run itself, the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
name='' accelerators='' nodes=1 bucket='' spot='' infra='' extra=cuda
parse "run logs status stop" "name accelerators nodes bucket spot? infra" "$@"
require name
[[ "$verb" != run ]] || require accelerators bucket
[[ "$accelerators$bucket$infra" =~ ^[A-Za-z0-9:/._-]*$ ]] ||
  fail "expected names, found --accelerators=$accelerators --bucket=$bucket --infra=$infra"
[[ "$accelerators" != tpu-* || "$nodes" == 1 ]] || fail "--nodes=$nodes: of a TPU, one slice; several: xpk.sh, jobset.sh"
[[ "$accelerators" != tpu-* ]] || extra=tpu
flags_for "$extra" "${accelerators#tpu-}"

task() {
  local coordinator=--coordinator=auto
  if [[ "$extra" == cuda ]]; then
    coordinator="--coordinator=\"\$(head -n 1 <<<\"\$SKYPILOT_NODE_IPS\"):8476\""
    coordinator+=" --num_processes=\"\$SKYPILOT_NUM_NODES\" --process_id=\"\$SKYPILOT_NODE_RANK\""
  fi
  cat <<EOF
name: $name
workdir: $PROJECT
num_nodes: $nodes
resources:
  accelerators: $accelerators
  job_recovery:
    recover_on_exit_codes: [143] # of --fail_on_sigterm: the machine is being taken away
EOF
  [[ -z "$infra" ]] || echo "  infra: $infra"
  [[ -z "$spot" ]] || echo "  use_spot: true"
  cat <<EOF
file_mounts:
  /shared:
    source: $bucket
    mode: MOUNT
setup: |
$(install_commands "$extra" '"$HOME/codet5p_env"' '"$HOME/sky_workdir"' | sed 's/^/  /')
run: |
  set -e${setup:+; $setup}
  $(train_command "\"\$HOME/codet5p_env/bin/codet5p\"" "$coordinator --fail_on_sigterm")
EOF
}

plan() {
  case "$verb" in
    run)
      cat <<PLAN
task="\$(mktemp -d)/$name.yaml"
cat >"\$task" <<'EOF'
$(task)
EOF
sky jobs launch --yes --detach-run --name=$name "\$task"
PLAN
      ;;
    logs) echo "sky jobs logs --name=$name" ;;
    status) echo "sky jobs queue" ;;
    stop) echo "sky jobs cancel --name=$name" ;;
  esac
}
launch
