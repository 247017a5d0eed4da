#!/usr/bin/env bash
# Prints what playbooks/status.yml finds, and nothing else: a table, or JSON.
#   status.sh table|json [ARGUMENTS of ansible-playbook]
# Status: 0 all is well, 1 something is not, 2 it could not be found out.
set -euo pipefail
cd "$(dirname "$0")/.."
form=$1
shift
mkdir -p build
folder=$(mktemp -d build/status.XXXXXX)
trap 'rm -rf "$folder"' EXIT

if scripts/play.sh playbooks/status.yml "$@" -e "status_dir=$PWD/$folder" > "$folder/log" 2>&1; then found=0; else found=1; fi
if [ ! -e "$folder/status.txt" ]; then
  cat "$folder/log" >&2
  exit 2
fi
case $form in
  json) cat "$folder/status.json" ;;
  table) cat "$folder/status.txt" ;;
esac
exit $found
