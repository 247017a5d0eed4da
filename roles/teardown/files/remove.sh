#!/usr/bin/env bash
# Removes what one instance has on this machine, and says each thing it removes and each thing it keeps.
#   remove.sh INSTANCE DRY DATA NODES KIND...
# DRY=true only lists. DATA=true removes the volumes too, and DATA=all is for an instance of which nothing is kept on any machine, so that
# nothing has to end in order: what runs is killed first. Kinds go in the given order; all of one kind at once. The kind `any` is all that
# is left of whatever kind, such as one of another version. Docker objects are chosen by their label, units by their line
# X-Tachograph-Instance, files by the instance's folder, rules of a packet filter by their comment. NODES is a pattern of those that go
# where others of the instance stay on this machine, and empty where none does: then what belongs to no node of the inventory goes too.
set -euo pipefail
instance=$1 dry=$2 data=$3 nodes=$4
shift 4

run() { [ "$dry" = true ] || "$@" > /dev/null; }
units=$(grep -lsxF "X-Tachograph-Instance=$instance" /etc/systemd/system/*.service || [ $? -le 2 ])
engine=$(docker version --format '{{.Server.Version}}' 2> /dev/null || echo none)
if [ "$engine" = none ] && [ -n "$(ls -A /var/lib/docker/containers 2> /dev/null)" ]; then
  echo "No engine answers, but /var/lib/docker holds containers, which would come back with it. Start it, then run this again:" \
    "systemctl start docker (without systemd: dockerd)." >&2
  exit 1
fi

# Of names on standard input those of the nodes: BEFORE-NODE and AFTER, patterns both
of_nodes() { if [ -z "$nodes" ]; then cat; else grep -xE -- "$1-($nodes)${2:-}" || [ $? = 1 ]; fi; }

# All of the instance's containers or volumes: name and kind
listed() {
  local filter="--filter=label=tachograph.instance=$instance" format='{{.Label "tachograph.kind"}}'
  [ "$engine" = none ] || case $1 in
    container) docker ps --all "$filter" --format "{{.Names}} $format" ;;
    volume) docker volume ls "$filter" --format "{{.Name}} $format" ;;
  esac
}
containers=$(listed container) volumes=$(listed volume)

# A kind's objects by name, those of `any` as they are by now
named() {
  local what=$1 kind=$2 after='' all=$containers
  if [ "$what" = volume ]; then after=-[a-z]+ all=$volumes; fi
  if [ "$kind" = any ]; then all=$(listed "$what"); fi
  awk -v kind="$kind" 'NF && (kind == "any" || $2 == kind) { print $1 }' <<< "$all" | of_nodes "$instance-[a-z]+" "$after"
}

if [ "$data" = all ]; then
  data=true
  # What systemd is about to stop it does not start again
  mapfile -t names < <([ -z "$units" ] || basename --multiple $units)
  [ ${#names[@]} -eq 0 ] || run systemctl stop --no-block "${names[@]}"
  mapfile -t names < <(named container any)
  [ ${#names[@]} -eq 0 ] || run docker stop -t 0 "${names[@]}"
fi

for kind in "$@"; do
  pattern=$kind-
  [ "$kind" != any ] || pattern=
  for file in $units; do
    unit=$(basename "$file")
    [[ -e $file && $unit == "$instance-$pattern"* && -n $(of_nodes "$instance-[a-z]+" '[.]service' <<< "$unit") ]] || continue
    echo "removed unit $unit"
    run systemctl disable --now "$unit"
    run rm -f "$file"
    # One that had failed would be listed for ever
    if systemctl is-failed --quiet "$unit"; then run systemctl reset-failed "$unit"; fi
  done
  mapfile -t names < <(named container "$kind")
  if [ ${#names[@]} -gt 0 ]; then
    printf 'removed container %s\n' "${names[@]}"
    run docker stop "${names[@]}"
    run docker rm --force --volumes "${names[@]}"
  fi
  mapfile -t names < <(named volume "$kind")
  if [ ${#names[@]} -gt 0 ] && [ "$data" = true ]; then
    printf 'removed volume %s\n' "${names[@]}"
    run docker volume rm "${names[@]}"
  fi
  for folder in "/etc/tachograph/$instance/$pattern"*; do
    [[ -d $folder && -n $(of_nodes '[a-z]+' <<< "$(basename "$folder")") ]] || continue
    echo "removed files $folder"
    run rm -rf "$folder"
  done
done
if [ -n "$units" ]; then run systemctl daemon-reload; fi
run find /etc/tachograph -depth -maxdepth 1 -type d -empty -delete 2> /dev/null || [ ! -d /etc/tachograph ]

# Rules of a proof that was killed
for chain in INPUT OUTPUT; do
  # Where none can be listed, none could be made
  rules=$(iptables -w 10 -nL "$chain" --line-numbers 2> /dev/null) || continue
  for number in $(grep -F "/* tachograph-verify $instance */" <<< "$rules" | cut -d' ' -f1 | sort -rn); do
    echo "removed rule $number of chain $chain"
    run iptables -w 10 -D "$chain" "$number"
  done
done

if [ "$data" != true ] && [ "$engine" != none ]; then
  # The last kind is all that was asked for: `any`, or the vehicles alone
  named volume "${!#}" | sed 's/^/kept volume /'
  docker images --filter label=tachograph.image --format 'kept image {{.Repository}}:{{.Tag}}' | sed '/<none>/d'
fi
