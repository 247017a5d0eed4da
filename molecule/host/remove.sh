#!/usr/bin/env bash
# Removes the hosts of an instance from this machine's engine, and says each thing it removes.
#   remove.sh INSTANCE
set -euo pipefail
label=label=tachograph.instance=$1

remove() {
  local kind=$1 names
  shift
  mapfile -t names
  [ ${#names[@]} -gt 0 ] || return 0
  printf "$kind %s\n" "${names[@]}"
  "$@" "${names[@]}" > /dev/null
}

docker ps --all --filter "$label" --format '{{.Names}}' | remove container docker rm --force
docker volume ls --filter "$label" --format '{{.Name}}' | remove volume docker volume rm
docker network ls --filter "$label" --format '{{.Name}}' | remove network docker network rm
