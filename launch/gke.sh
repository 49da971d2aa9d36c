# shellcheck shell=bash
# Sourced by xpk.sh and jobset.sh, whose runs are both JobSets on a GKE cluster.

# Kubernetes takes a pod that exits with 0 for finished, also where a drained node ended it.
# shellcheck disable=SC2034  # xpk.sh and jobset.sh use it
on_gke='--coordinator=auto --fail_on_sigterm'

# kubernetes_name NAME: an error where a JobSet could not have it; its jobs have longer ones.
kubernetes_name() {
  [[ "$1" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$1: Kubernetes takes up to 40 of a-z, 0-9 and '-', such as stage1"
}

# enter_cluster CLUSTER LOCATION PROJECT: makes kubectl speak to it.
enter_cluster() {
  echo "gcloud container clusters get-credentials $(quote "$1" --location="$2" ${3:+--project="$3"})"
}

# unless_running NAME COMMANDS: leaves a JobSet alone that runs, and removes one that has ended,
# since its name is taken for as long as it is there.
unless_running() {
  cat <<EOF
if kubectl get jobset $1 >/dev/null 2>&1; then
  if [[ -z "\$(kubectl get jobset $1 --output=jsonpath='{.status.terminalState}')" ]]; then
    echo "$1 is running, or waits for its nodes"
    exit
  fi
  kubectl delete jobset $1
fi
EOF
}

# accelerator CHIP: GKE's name of it. https://docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
accelerator() {
  case "$1" in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    tpu7x) echo tpu7x ;;
  esac
}

job_verbs() { # VERB NAME: everything but run
  case "$1" in
    logs) echo "kubectl logs --follow --tail=100 --selector=jobset.sigs.k8s.io/jobset-name=$2,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" ;;
    status) echo "kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=$2 --output=wide" ;;
    stop) echo "kubectl delete jobset $2" ;;
  esac
}
