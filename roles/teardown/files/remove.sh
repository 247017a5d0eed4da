#!/usr/bin/env bash
# Removes what one instance has on this machine, and says each thing it removes.
#   remove.sh INSTANCE DRY DATA KIND...
# DRY=true only lists. DATA=true removes the volumes too. Kinds go in the given order; all of one kind at once.
# Docker objects are chosen by their label, units by their line X-Tachograph-Instance, files by the instance's folder.
set -euo pipefail
instance=$1 dry=$2 data=$3
shift 3

run() { [ "$dry" = true ] || "$@" > /dev/null; }
units=$(grep -lsxF "X-Tachograph-Instance=$instance" /etc/systemd/system/*.service || [ $? -le 2 ])
engine=$(docker version --format '{{.Server.Version}}' 2> /dev/null || echo none)

for kind in "$@"; do
  for file in $units; do
    unit=$(basename "$file")
    [[ $unit == "$instance-$kind-"* ]] || continue
    echo "unit $unit"
    run systemctl disable --now "$unit"
    run rm -f "$file"
  done
  if [ "$engine" != none ]; then
    mapfile -t names < <(docker ps --all --filter "label=tachograph.instance=$instance" --filter "label=tachograph.kind=$kind" --format '{{.Names}}')
    if [ ${#names[@]} -gt 0 ]; then
      printf 'container %s\n' "${names[@]}"
      run docker stop "${names[@]}"
      run docker rm --force "${names[@]}"
    fi
    if [ "$data" = true ]; then
      mapfile -t volumes < <(docker volume ls --filter "label=tachograph.instance=$instance" --filter "label=tachograph.kind=$kind" --format '{{.Name}}')
      if [ ${#volumes[@]} -gt 0 ]; then
        printf 'volume %s\n' "${volumes[@]}"
        run docker volume rm "${volumes[@]}"
      fi
    fi
  fi
  for folder in "/etc/tachograph/$instance/$kind-"*; do
    [ -d "$folder" ] || continue
    echo "files $folder"
    run rm -rf "$folder"
  done
done
if [ -n "$units" ]; then run systemctl daemon-reload; fi
run find /etc/tachograph -depth -maxdepth 1 -type d -empty -delete 2> /dev/null || [ ! -d /etc/tachograph ]
