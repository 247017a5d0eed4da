# logs.sh FOLDER TOOL... -- PARTITION...   Where the logs of partitions end on this broker, a line each: "telemetry-0 7 1234", which is the
# partition, the leader epoch of its last record, and the offset after that. The partitions have no leader, so nobody writes to them.
set -euo pipefail
folder=$1
shift
tool=()
while [ "$1" != -- ]; do
  tool+=("$1")
  shift
done
shift

segments=()
for partition; do
  for log in "$folder"/*/"$partition"; do
    # All names are of one length, so the last one by name is the last segment
    if [ -d "$log" ]; then segments+=("$(printf '%s\n' "$log"/*.log | tail -n 1)"); fi
  done
done
[ ${#segments[@]} -gt 0 ] || exit 0

# An empty segment has no record that says an epoch: the log ends where the segment begins
for segment in "${segments[@]}"; do
  log=$(dirname "$segment")
  epoch=$(tail -n +3 "$log/leader-epoch-checkpoint" | tail -n 1)
  epoch=${epoch%% *}
  echo "Empty $segment $(basename "$log") ${epoch:--1} $((10#$(basename "$segment" .log)))"
done > /tmp/empty
"${tool[@]}" kafka.tools.DumpLogSegments --skip-record-metadata --files "$(IFS=,; echo "${segments[*]}")" | awk '
  /^Empty / { name[$2] = $3; epoch[$2] = $4; end[$2] = $5 }
  /^Dumping / { segment = $2 }
  /^baseOffset: / {
    for (field = 1; field < NF; field++) {
      if ($field == "lastOffset:") end[segment] = $(field + 1) + 1
      if ($field == "partitionLeaderEpoch:") epoch[segment] = $(field + 1)
    }
  }
  END { for (segment in name) print name[segment], epoch[segment], end[segment] }
' /tmp/empty -
