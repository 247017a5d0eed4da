# Starts Postgres for a moment with the files of /etc/tachograph, on a cluster of its own that listens to nobody: whatever keeps it from
# starting is said here, while the server that runs goes on.
set -euo pipefail
initdb --pgdata=/tmp/data --username=postgres --auth=trust --no-sync --wal-segsize=1 > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
postgres -D /tmp/data --config-file=/etc/tachograph/postgresql.conf -c port=5432 -c listen_addresses= -c unix_socket_directories=/tmp \
  -c logging_collector=off -c log_destination=stderr -c archive_mode=off > /tmp/said 2>&1 &
until said=$(psql -X -q -A -t -h /tmp -p 5432 -U postgres -d postgres -c 'SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL' 2>&1); do
  jobs -r | grep -q . || { grep -vE 'HINT:|LOG:  (starting|listening|database system)' /tmp/said; exit 1; }
  sleep 0.1
done
kill -INT %1
wait %1
[ -z "$said" ] || { echo "$said"; exit 1; }
