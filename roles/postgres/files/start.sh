#!/usr/bin/env bash
# Starts Postgres; the first time it makes the cluster, under another name so that a half-made one is never used.
set -euo pipefail
folder=$(dirname "$PGDATA")

refuse() {
  printf '%s\n' "$@" >&2
  exit 1
}

# Another container that has this folder, too, would write into the same files. The lock lasts as long as any process of the database.
exec 9< "$folder"
flock -n 9 || refuse "Another container runs a database in the same folder ($folder). So this one was not started." \
  "Look for it with \"docker ps\" on this host, and remove one of both."

if [ -s "$PGDATA/PG_VERSION" ]; then
  made=$(< "$PGDATA/PG_VERSION")
  [[ $(postgres --version) =~ \)\ ([0-9]+) ]]
  [ "$made" = "${BASH_REMATCH[1]}" ] || refuse \
    "The database in $PGDATA was made by PostgreSQL $made, and this image has PostgreSQL ${BASH_REMATCH[1]}, which cannot open it. Nothing was" \
    "changed. Set postgres_image to an image of PostgreSQL $made and run site.yml. To go on with PostgreSQL ${BASH_REMATCH[1]}, dump the database with" \
    "that, and restore the dump into an empty volume (docs/operations.md)."
elif [ ! -e "$folder/new-member" ]; then
  refuse "The folder of the database ($folder in the container) holds no data: data/PG_VERSION is not there. So Postgres was not started." \
    "If its disk is not mounted, mount it and start this container again. If the data is lost, run site.yml, which makes a new database, and" \
    "restore a backup (docs/operations.md)."
else
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 --data-checksums
  mv "$PGDATA.new" "$PGDATA"
fi
rm -f "$folder/new-member"
# Left by a process that was killed; the container's process ids say nothing about the old one, and the lock says that it is gone.
rm -f "$PGDATA/postmaster.pid"
# A query that wants more memory than this fails with "out of memory". Without the bound the kernel would end the whole database.
ulimit -v "$POSTGRES_SESSION"
exec postgres --config-file=/etc/tachograph/postgresql.conf
