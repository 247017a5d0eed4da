#!/bin/sh
# Starts dockerd in a session of its own, unless one runs, and keeps its log within a bound.
#   start.sh LOG
set -eu
log=$1
if pgrep -x dockerd > /dev/null; then exit 0; fi
# Left by a daemon that was killed: where /run outlives a boot, another process may have its number by now.
rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
# Copied and emptied, not renamed: the daemon goes on writing to the file that it has open. Its end ends the loop.
setsid sh -c '
  dockerd >> "$1" 2>&1 < /dev/null &
  while sleep 60 && kill -0 $!; do
    if [ "$(wc -c < "$1")" -gt 10485760 ]; then cp "$1" "$1.1" && : > "$1"; fi
  done
' start "$log" > /dev/null 2>&1 &
echo started
