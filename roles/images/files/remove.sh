#!/usr/bin/env bash
# Removes every image of this product that no container uses, once no other instance is left on the machine, and says which go and which stay.
#   remove.sh DRY REMOVE INSTANCE      DRY=true only lists; REMOVE=false keeps all; INSTANCE is the one that goes
set -euo pipefail
dry=$1 remove=$2 instance=$3
docker version > /dev/null 2>&1 || exit 0

# Containers but those of the instance, which are there still in a dry run: their image, and the instance that they are of
others=$(docker ps --all --no-trunc --format '{{.ID}} {{.Label "tachograph.instance"}}' | awk -v gone="$instance" '$2 != gone')
mapfile -t ids < <(cut -d' ' -f1 <<< "$others" | sed '/^$/d')
used=$([ ${#ids[@]} -eq 0 ] || docker inspect --format '{{.Image}}' "${ids[@]}")
if grep -q '[^ ]* [^ ]' <<< "$others"; then remove=false; fi

images=()
while read -r image id; do
  if [ "$remove" = true ] && ! grep -qxF "$id" <<< "$used"; then images+=("$image"); else echo "kept image $image"; fi
done < <(docker images --no-trunc --filter label=tachograph.image --format '{{.Repository}}:{{.Tag}} {{.ID}}' | sed '/<none>/d')
[ ${#images[@]} -gt 0 ] || exit 0
printf 'removed image %s\n' "${images[@]}"
if [ "$dry" != true ]; then docker rmi "${images[@]}" > /dev/null; fi
