#!/usr/bin/env bash
# Removes the hosts of an instance from this machine's engine, and says each thing it removes.
#   remove.sh INSTANCE IMAGES      IMAGES=true: images of hosts too, unless other hosts use them
set -euo pipefail
label=label=tachograph.instance=$1

# Stopped before it is removed: an engine inside that is killed leaves the control groups of its containers behind.
stop_and_remove() {
  docker stop -t 10 "$@" && docker rm --force --volumes "$@"
}

# Reads the names, and removes them by the given command.
remove() {
  local kind=$1 names
  shift
  mapfile -t names
  [ ${#names[@]} -gt 0 ] || return 0
  printf "%s\n" "${names[@]/#/$kind }"
  "$@" "${names[@]}" > /dev/null
}

docker ps --all --filter "$label" --format '{{.Names}}' | remove container stop_and_remove
docker volume ls --filter "$label" --format '{{.Name}}' | remove volume docker volume rm
docker network ls --filter "$label" --format '{{.Name}}' | remove network docker network rm

# An engine that lost its state leaves a bridge behind, and two with one subnet answer for each other's hosts.
bridge=${1/tachograph/tg}
if ip link show "$bridge" > /dev/null 2>&1; then
  echo "bridge $bridge"
  ip link delete "$bridge"
fi

[ "$2" = true ] || exit 0
for image in $(docker images --filter label=tachograph.host --format '{{.Repository}}:{{.Tag}}'); do
  [ -n "$(docker ps --all --quiet --filter "ancestor=$image")" ] || echo "$image"
done | remove image docker rmi
