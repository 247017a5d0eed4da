# Makes nginx read its configuration again, and waits until it serves by it alone: the master keeps its workers if it cannot use the new one.
set -euo pipefail
nginx -t -q -c /etc/tachograph/live/nginx.conf -e stderr
master=$(cat /tmp/nginx.pid)
# Workers that take connections; those of before finish what they have, and say so in their names
workers() {
  for worker in $(< "/proc/$master/task/$master/children"); do
    tr '\0' ' ' 2> /tmp/gone < "/proc/$worker/cmdline" | grep -q 'shutting down' || echo "$worker"
  done | sort
}
before=$(workers)
kill -HUP "$master"
for ((tries = 0; tries < 100; tries++)); do
  now=$(workers)
  [ -n "$now" ] && [ -z "$(comm -12 <(echo "$before") <(echo "$now"))" ] && exit 0
  sleep 0.1
done
echo "nginx did not replace its workers within 10 s; its log says why"
exit 1
