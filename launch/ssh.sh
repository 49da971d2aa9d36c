#!/usr/bin/env bash
# Trains on hosts that ssh reaches, one process each, with all accelerators of the host.
#
#   launch/ssh.sh [run|logs|stop] --hosts=HOST,HOST --name=NAME -- --gin_file=runs/stage1_220m.gin …
#
# run             copy the committed sources, install them in ~/codet5p_env, start training, return
# logs            follow the output of the first host, ~/NAME.log
# stop            SIGTERM on all hosts: the run saves and ends
#
# --hosts=A,B     as ssh takes them; process i is on the i-th, and the others reach A by that name,
#                 or by --coordinator=ADDRESS
# --name=NAME     of the run
# --port=N        where the first host listens for the others (default: 8476)
# --extra=NAME    what to install: cuda (default) or tpu
#
# The same command goes on after a failure, and leaves hosts alone where the run is up.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
source "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
hosts='' name='' coordinator='' port=8476 extra=cuda
parse "run logs stop" "hosts name coordinator port extra" "$@"
require hosts name
[[ ",$hosts," != *,,* && "$hosts" != *[[:space:]]* ]] ||
  fail "--hosts=$hosts: expected names with one comma between them"
IFS=, read -r -a host_list <<<"$hosts"
twice="$(printf '%s\n' "${host_list[@]}" | sort | uniq -d)"
[[ -z "$twice" ]] || fail "--hosts=$hosts: ${twice%%$'\n'*} is there twice"
[[ "$coordinator" != *:* ]] || fail "--coordinator=$coordinator: expected an address; its port is --port=N"
[[ "$extra" == cuda || "$extra" == tpu ]] || fail "--extra=$extra: expected cuda or tpu"
flags_for "$extra"
first="${host_list[0]##*@}"

# on_all COMMAND…: runs it for every host at once, as $host of number $i, and waits for all.
on_all() {
  cat <<EOF
i=0 pids=()
for host in $(quote "${host_list[@]}"); do
  ($* || { echo "\$host: failed" >&2 && exit 1; }) &
  pids+=("\$!")
  i=\$((i + 1))
done
failed=0
for pid in "\${pids[@]}"; do wait "\$pid" || failed=1; done
((failed == 0)) || exit 1
EOF
}

plan() {
  case "$verb" in
    run)
      copied_files "$name" "$extra" \
        "--coordinator=${coordinator:-$first}:$port --num_processes=${#host_list[@]} --process_id=\"\$1\""
      echo "# Nothing starts before all hosts have the program."
      on_all 'scp -q "$work"/codet5p_* "$host:" && ssh "$host" bash codet5p_install.sh'
      on_all 'ssh "$host" bash codet5p_start.sh "$i"'
      ;;
    logs) echo "ssh $(quote "${host_list[0]}" tail -n 100 -F "$name.log")" ;;
    stop) on_all "ssh \"\$host\" $(quote "$(stop_command "$name")")" ;;
  esac
}
launch
