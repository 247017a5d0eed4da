#!/bin/sh
# Starts dockerd in a session of its own, unless one runs.
#   start.sh LOG
set -eu
log=$1
if pgrep -x dockerd > /dev/null; then exit 0; fi
# Left by a daemon that was killed: where /run outlives a boot, another process may have its number by now.
rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
setsid dockerd >> "$log" 2>&1 < /dev/null &
echo started
