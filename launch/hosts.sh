# shellcheck shell=bash
# Sourced by the launchers that reach their hosts over ssh: what is copied there, and what it does.

# copied_files NAME EXTRA COORDINATOR: commands that write into $work the committed sources, a script
# that installs them, and one that starts training, with the process's number as its argument.
copied_files() {
  cat <<PLAN
# The sources as committed, and what the hosts do with them.
work="\$(mktemp -d)"
trap 'rm -rf "\$work"' EXIT
git -C $(quote "$PROJECT") archive --prefix=codet5p_jax/ --output="\$work/codet5p_jax.tar.gz" HEAD
cat >"\$work/codet5p_install.sh" <<'EOF'
set -euo pipefail
exec 9>$1.lock 8>codet5p_env.lock
flock -n 9 || exit 0 # the script that starts says so
flock -n 8 || { echo "\$HOSTNAME: another run uses ~/codet5p_env; stop it first" >&2 && exit 1; }
rm -f $1.pid # of the run before
$(install_commands "$2" '"$HOME/codet5p_env"' '"$HOME/codet5p_jax.tar.gz"')
EOF
cat >"\$work/codet5p_start.sh" <<'EOF'
set -euo pipefail
running() { echo "\$HOSTNAME: $1 is running, or being installed" && exit; }
flock -n $1.lock true || running # before set-up, which takes no lock: what it leaves running inherits none
${setup:+$setup
}exec 9>$1.lock 8>codet5p_env.lock # held by what trains, as long as it lives
flock -n 9 || running
flock -s 8
nohup setsid $(train_command "\"\$HOME/codet5p_env/bin/codet5p\"" "$3") \\
  >>$1.log 2>&1 </dev/null &
echo "\$!" >$1.pid
echo "\$HOSTNAME: $1 has started"
EOF
PLAN
}

# What a host does to stop training: SIGTERM to its process group, which saves and exits.
stop_command() {
  echo "if flock -n $1.lock true; then echo \"\$HOSTNAME: $1 is not running\"; elif [[ -f $1.pid ]]; then kill -TERM -- -\$(cat $1.pid); else echo \"\$HOSTNAME: $1 is being installed; stop it when it trains\" >&2 && exit 1; fi"
}
