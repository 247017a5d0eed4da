#!/usr/bin/env bash
# Removes every image of this product that no container uses, and says which, once no instance is left on the machine.
#   remove.sh DRY      DRY=true only lists
set -euo pipefail
docker version > /dev/null 2>&1 || exit 0
[ -z "$(docker ps --all --quiet --filter label=tachograph.instance)" ] || exit 0
mapfile -t containers < <(docker ps --all --quiet)
used=$([ ${#containers[@]} -eq 0 ] || docker inspect --format '{{.Image}}' "${containers[@]}")
images=()
while read -r image id; do
  grep -qxF "$id" <<< "$used" || images+=("$image")
done < <(docker images --no-trunc --filter label=tachograph.image --format '{{.Repository}}:{{.Tag}} {{.ID}}' | grep -v '<none>' || true)
[ ${#images[@]} -gt 0 ] || exit 0
printf 'image %s\n' "${images[@]}"
if [ "$1" != true ]; then docker rmi "${images[@]}" > /dev/null; fi
