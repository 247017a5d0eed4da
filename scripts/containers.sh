#!/usr/bin/env bash
# Looks into the containers of an instance on this machine.
#   containers.sh INSTANCE logs KIND   follows the logs of all of one kind
#   containers.sh INSTANCE psql        opens the database as its superuser
set -euo pipefail
instance=$1 verb=$2 kind=${3:-}
kinds="zookeeper kafka postgres nginx producer consumer vehicle"

docker=(docker)
docker version > /dev/null 2>&1 || docker=(sudo docker)

of_kind() {
  "${docker[@]}" ps --all --filter "label=tachograph.instance=$instance" --filter "label=tachograph.kind=$1" --format '{{.Names}}' | sort
}

case $verb in
  logs)
    case " $kinds " in *" $kind "*) ;; *) echo "Which? make logs s=<one of: $kinds>" >&2; exit 2 ;; esac
    mapfile -t names < <(of_kind "$kind")
    [ ${#names[@]} -gt 0 ] || { echo "Instance $instance has no $kind on this machine." >&2; exit 1; }
    trap 'kill $(jobs -p) 2> /dev/null' EXIT
    for name in "${names[@]}"; do
      "${docker[@]}" logs --follow --tail 50 "$name" 2>&1 | sed -u "s/^/${name#"$instance-"} | /" &
    done
    wait
    ;;
  psql)
    name=$(of_kind postgres | head -n 1)
    [ -n "$name" ] || { echo "Instance $instance has no postgres on this machine." >&2; exit 1; }
    terminal=(); if [ -t 0 ]; then terminal=(--tty); fi
    exec "${docker[@]}" exec --interactive "${terminal[@]}" "$name" psql --username=postgres
    ;;
  *) echo "Unknown: $verb" >&2; exit 2 ;;
esac
