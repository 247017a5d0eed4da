#!/usr/bin/env bash
# Starts the broker: start.sh JAVA ARGUMENT...
# A broker without data can become the leader of what it does not have, and the others would cut their logs to its. So it begins only
# where a play of site.yml, which asks the other brokers first, put the file new-member into its folder.
set -euo pipefail

if ! compgen -G "$KAFKA_DIR/*/meta.properties" > /dev/null && [ ! -e "$KAFKA_DIR/new-member" ]; then
  printf '%s\n' "The folder of this broker ($KAFKA_DIR in the container) holds no data: it has no meta.properties. So the broker was not started." \
    "If its disk is not mounted, mount it and start this container again. If the data is lost, run site.yml: it lets the broker begin without" \
    "data once no acknowledged record can be lost by that." >&2
  exit 1
fi
exec "$@"
