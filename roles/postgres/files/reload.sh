# Makes Postgres read its live files again, and fails with the line and the reason if it could not use one.
set -euo pipefail
ask() { psql -X -q -A -t -v ON_ERROR_STOP=1 -d postgres "$@"; }
before=$(ask -c 'SELECT clock_timestamp()')
ask -c 'SELECT pg_reload_conf()' > /dev/null
loaded=f
for ((tries = 0; tries < 100; tries++)); do
  loaded=$(ask -v before="$before" <<< "SELECT pg_conf_load_time() >= :'before'")
  [ "$loaded" = f ] || break
  sleep 0.1
done
[ "$loaded" = t ] || { echo 'Postgres did not read its configuration within 10 s'; exit 1; }
said=$(ask <<'END'
SELECT format('%s, line %s: %s', file_name, line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL
UNION ALL
SELECT format('%s, line %s, %s: %s', sourcefile, sourceline, name, error) FROM pg_file_settings WHERE error IS NOT NULL
END
)
[ -z "$said" ] || { echo "$said"; exit 1; }
