# Makes nginx read its configuration again, and waits until it serves by it: the master keeps its workers if it cannot use the new one.
set -euo pipefail
nginx -t -q -c /etc/tachograph/live/nginx.conf -e stderr
master=$(cat /tmp/nginx.pid)
workers() { tr ' ' '\n' < "/proc/$master/task/$master/children" | sort; }
before=$(workers)
kill -HUP "$master"
for ((tries = 0; tries < 100; tries++)); do
  [ -z "$(comm -13 <(echo "$before") <(workers))" ] || exit 0
  sleep 0.1
done
echo "nginx did not start new workers within 10 s; its log says why"
exit 1
