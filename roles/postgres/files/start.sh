#!/usr/bin/env bash
# Starts Postgres; the first time it makes the cluster, under another name so that a half-made one is never used.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 --data-checksums
  mv "$PGDATA.new" "$PGDATA"
fi
# Left by a process that was killed; the container's process ids say nothing about the old one.
rm -f "$PGDATA/postmaster.pid"
exec postgres --config-file=/etc/tachograph/postgresql.conf
