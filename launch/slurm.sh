#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster, one process a GPU, in a plain virtual environment.
#
#   launch/slurm.sh --name=NAME --nodes=2 --gpus=8 --time=24:00:00 --venv=/shared/codet5p_env \
#     -- --gin_file=runs/stage1_220m.gin …
#
# --name=NAME       of the job; its output is NAME-JOBID.log
# --nodes=N         --gpus=N  of each
# --time=LIMIT      of one job; SIGTERM comes two minutes earlier, and the run saves and ends
# --jobs=N          as many jobs, one after another, each going on where the last ended (default: 1)
# --venv=DIR        environment that all nodes see; made or renewed from this checkout before
#                   submission, unless a job of that name runs
# --cpus=N          of each process (default: 8)
# --partition=NAME  --account=NAME  --reservation=NAME  --qos=NAME
#
# The same command goes on. Jobs of one name never run at once: a second waits for the first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
# shellcheck disable=SC2034  # read by name, below
name='' nodes='' gpus='' time='' jobs=1 venv='' cpus=8 partition='' account='' reservation='' qos=''
parse run "name nodes gpus time jobs venv cpus partition account reservation qos" "$@"
require name nodes gpus time venv
[[ "$time" =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$|^(UNLIMITED|INFINITE)$ ]] || fail "--time=$time: expected [DAYS-]HOURS:MINUTES:SECONDS, such as 24:00:00"
flags_for cuda

plan() {
  local option
  cat <<PLAN
if [[ -n "\$(squeue --me --noheader --states=RUNNING --name=$name)" ]]; then
  echo $name is running: $(quote "$venv") is left as it is
else
$(install_commands cuda "$(quote "$venv")" "$(quote "$PROJECT")")
fi
for ((job = 0; job < $jobs; job++)); do
  sbatch <<'EOF'
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --output=$name-%j.log
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --mem=0
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --open-mode=append
PLAN
  for option in partition account reservation qos; do
    [[ -z "${!option}" ]] || echo "#SBATCH --$option=${!option}"
  done
  cat <<PLAN
set -euo pipefail${setup:+; $setup}
# Every process sees all GPUs of its node, and JAX takes the one of its number.
# It does not take over --cpus-per-task from sbatch.
srun --cpus-per-task=$cpus --gpu-bind=none --kill-on-bad-exit=1 \\
  $(train_command "$(quote "$venv/bin/codet5p")" --coordinator=auto)
EOF
done
PLAN
}
launch
