#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster without xpk: writes a JobSet and hands it to kubectl.
#
#   launch/jobset.sh [run|logs|status|stop] --name=NAME --cluster=CLUSTER --location=PLACE \
#     --image=IMAGE --topology=v5e:4x4 -- --gin_file=runs/stage1_220m.gin …
#
# run              submit the JobSet
# logs             follow the output of the first host; status: its pods
# stop             SIGTERM, five minutes, the end
#
# --name=NAME      of the JobSet
# --cluster=…      with the JobSet controller; --location=REGION or zone  --project=ID
# --image=IMAGE    with this project installed (docs/launch.md)
# --topology=C:AxB as of `codet5p precompile`: v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4
# --slices=N       (default: 1); --restarts=N: after failures (default: 50)
# --claim=NAME     persistent volume claim that all hosts mount as /shared
# --spot           nodes of a spot pool
#
# Nodes that fail or are drained start the run anew. So does the same command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gke.sh"
name='' cluster='' location='' project='' image='' topology='' slices=1 restarts=50 claim='' spot=''
parse "run logs status stop" "name cluster location project image topology slices restarts claim spot?" "$@"
require name cluster location
[[ "$verb" != run ]] || require image topology claim
kubernetes_name "$name"
[[ "$image$claim" =~ ^[A-Za-z0-9./:@_-]*$ ]] || fail "expected names, found --image=$image --claim=$claim"
known='^((v5e|v6e):(2x2|2x4|4x4|4x8|8x8|8x16|16x16)|(v4|v5p|tpu7x):[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*)$' sides="${topology#*:}"
[[ "$verb" != run ]] || [[ "$topology" =~ $known && $((${sides//x/*} % 4)) == 0 ]] ||
  fail "--topology=$topology: expected v5e or v6e:2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16, or such as v4:2x2x4 (v5p, tpu7x), in hosts of 4 chips"
flags_for tpu "$topology"

jobset() {
  local hosts=$((${sides//x/*} / 4)) accelerator
  accelerator="$(accelerator "${topology%%:*}")"
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations: # a slice to itself for each job
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules: # what is wrongly configured stays so
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [2, 3]}
        template:
          spec:
            restartPolicy: Never
            shareProcessNamespace: true # else training is process 1, which SIGTERM does not end by itself
            terminationGracePeriodSeconds: 300
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $sides${spot:+
              cloud.google.com/gke-spot: \"true\"}
            tolerations:
            - {key: google.com/tpu, operator: Exists, effect: NoSchedule}${spot:+
            - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule\}}
            containers:
            - name: train
              image: $image
              command: [bash, -c]
              args:
              - |
                set -e${setup:+; $setup}
                exec $(train_command codet5p "$on_gke")
              resources: {limits: {google.com/tpu: 4}}
              volumeMounts: [{name: shared, mountPath: /shared}]
            volumes: [{name: shared, persistentVolumeClaim: {claimName: $claim}}]
EOF
}

plan() {
  enter_cluster "$cluster" "$location" "$project"
  if [[ "$verb" != run ]]; then
    job_verbs "$verb" "$name"
    return
  fi
  unless_running "$name"
  printf '%s\n' "kubectl apply --filename=- <<'EOF'" "$(jobset)" EOF
}
launch
