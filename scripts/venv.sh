#!/usr/bin/env bash
# Makes .venv with the tools of requirements.txt, unless it has exactly those already.
set -euo pipefail
cd "$(dirname "$0")/.."
# The old one does not make the new one
PATH=${PATH//"$PWD/.venv/bin:"/}

fail() { printf '%s\n' "$@" >&2; exit 1; }

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if recent "$name"; then "$name" -c 'import sys; print(sys.executable)'; return; fi
  done
  fail "Python 3.11 or later is needed; ${PYTHON:-python3} is not one." "Install it, or name it: make PYTHON=/path/to/python3.11"
}

# Debian's Python comes without ensurepip.
need_ensurepip() {
  "$1" -c 'import ensurepip, venv' 2> /dev/null && return
  local version root=() advice
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  advice="apt-get install python$version-venv"
  [ "$(id -u)" = 0 ] || root=(sudo)
  command -v apt-get > /dev/null || fail "$1 lacks the module ensurepip. Install it with your system's packages."
  echo "$1 lacks the module ensurepip: ${root[*]} $advice"
  "${root[@]}" apt-get update && "${root[@]}" apt-get install --yes --no-install-recommends "python$version-venv" \
    || fail "That failed. Run it by hand, then this again: ${root[*]} $advice"
}

# A network may re-sign TLS with an authority that only the system's certificates know; older pips have their own list.
trust_system() {
  local certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  if [ -z "${PIP_CERT:-}" ] && [ -r "$certificates" ] && ! .venv/bin/pip config list | grep -q '\.cert='; then
    export PIP_CERT=$certificates
  fi
}

stamp=$(sha256sum requirements.txt | cut -d' ' -f1)
if [ "$(cat .venv/stamp 2> /dev/null)" = "$stamp" ] && recent .venv/bin/python; then exit 0; fi

python=$(find_python)
need_ensurepip "$python"
echo "The tools, into .venv by $python: about a minute"
rm -rf .venv
"$python" -m venv .venv
trust_system
.venv/bin/pip install --disable-pip-version-check --require-hashes --no-compile --requirement requirements.txt
# Compiled here and by all cores: pip takes one, and root, as which some tools run, would leave files of its own.
mkdir -p build
.venv/bin/python -m compileall -q -j 0 -x 'ansible_collections/(?!ansible/posix|community/docker|community/library)' .venv/lib \
  > build/compileall.log
echo "$stamp" > .venv/stamp
