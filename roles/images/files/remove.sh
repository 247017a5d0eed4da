#!/usr/bin/env bash
# Removes every image of this product, and says which, unless a container of any instance is left.
#   remove.sh DRY      DRY=true only lists
set -euo pipefail
docker version > /dev/null 2>&1 || exit 0
[ -z "$(docker ps --all --quiet --filter label=tachograph.instance)" ] || exit 0
mapfile -t images < <(docker images --filter label=tachograph.image --format '{{.Repository}}:{{.Tag}}' | grep -v '<none>')
[ ${#images[@]} -gt 0 ] || exit 0
printf 'image %s\n' "${images[@]}"
if [ "$1" != true ]; then docker rmi "${images[@]}" > /dev/null; fi
