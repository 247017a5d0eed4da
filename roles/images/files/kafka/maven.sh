#!/usr/bin/env bash
# Fetches jars by Maven in a build stage.
#   maven.sh trust         makes Java trust the controller's certificate authorities: its network may re-sign TLS
#   maven.sh copy POM LIBS copies what POM/pom.xml names to LIBS, and fails unless it is exactly POM/SHA256SUMS
#   maven.sh settings      prints Maven's settings for the environment's proxy, which Maven itself does not read
set -euo pipefail

trust() {
  cd /usr/local/share/ca-certificates
  csplit --quiet --elide-empty-files --prefix=controller- --suffix-format=%04d.crt \
    /opt/build/ca-certificates.crt '/-----BEGIN CERTIFICATE-----/' '{*}'
  update-ca-certificates
}

# The text of XML for a part of a URL: %40 is an @ there
text() {
  local decoded
  printf -v decoded '%b' "$(sed 's/\\/\\\\/g; s/%\([0-9A-Fa-f][0-9A-Fa-f]\)/\\x\1/g' <<< "$1")"
  sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g' <<< "$decoded"
}

settings() {
  local proxy=${https_proxy:-${HTTPS_PROXY:-}} login="" direct=${no_proxy:-${NO_PROXY:-}}
  echo '<settings>'
  if [ -n "$proxy" ]; then
    proxy=${proxy#*://} proxy=${proxy%%/*}
    # user:password@host:port; a password may hold an @ only as %40
    case $proxy in *@*) login=${proxy%@*} proxy=${proxy##*@} ;; esac
    case $proxy in *:*) ;; *) proxy=$proxy:80 ;; esac
    direct=$(sed 's/[[:space:]]//g; s/,\./,*./g; s/^\./*./; s/,/|/g' <<< "$direct")
    echo "<proxies><proxy><id>environment</id><active>true</active><protocol>http</protocol>"
    echo "<host>$(text "${proxy%:*}")</host><port>$(text "${proxy##*:}")</port>"
    if [ -n "$login" ]; then
      echo "<username>$(text "${login%%:*}")</username>"
      case $login in *:*) echo "<password>$(text "${login#*:}")</password>" ;; esac
    fi
    echo "<nonProxyHosts>$(text "$direct")</nonProxyHosts></proxy></proxies>"
  fi
  echo '</settings>'
}

copy() {
  # A file, not options: a password would stand in the list of processes. It stays in this stage, of which no image is made.
  (umask 077 && settings > /tmp/settings.xml)
  mvn --batch-mode --no-transfer-progress --settings /tmp/settings.xml --file "$1/pom.xml" \
    dependency:3.8.1:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$2"
  rm /tmp/settings.xml
  cd "$2"
  sha256sum -- *.jar > /tmp/sums
  diff "$1/SHA256SUMS" /tmp/sums || { echo "The jars are not those of SHA256SUMS." >&2; exit 1; }
}

"$@"
