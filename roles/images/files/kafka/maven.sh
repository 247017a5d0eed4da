#!/usr/bin/env bash
# Fetches jars by Maven in a build stage.
#   maven.sh trust         makes Java trust the controller's certificate authorities: its network may re-sign TLS
#   maven.sh copy POM LIBS copies what POM/pom.xml names to LIBS, and fails unless it is exactly POM/SHA256SUMS
set -euo pipefail

trust() {
  cd /usr/local/share/ca-certificates
  csplit --quiet --elide-empty-files --prefix=controller- --suffix-format=%04d.crt \
    /opt/build/ca-certificates.crt '/-----BEGIN CERTIFICATE-----/' '{*}'
  update-ca-certificates
}

copy() {
  local options=() proxy
  # Maven does not read the environment's proxy
  proxy=${https_proxy:-${HTTPS_PROXY:-}}
  proxy=${proxy#*://} proxy=${proxy%/}
  if [ -n "$proxy" ]; then
    options=(-Dhttps.proxyHost="${proxy%:*}" -Dhttps.proxyPort="${proxy##*:}")
  fi
  mvn --batch-mode --no-transfer-progress "${options[@]}" --file "$1/pom.xml" \
    dependency:3.8.1:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$2"
  cd "$2"
  sha256sum -- *.jar > /tmp/sums
  diff "$1/SHA256SUMS" /tmp/sums || { echo "The jars are not those of SHA256SUMS." >&2; exit 1; }
}

"$@"
