#!/usr/bin/env bash
# ansible-playbook with the given arguments; while images are built, their steps appear between its lines.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build

# Root may write a log of its own here; a new one is followed as well.
tail --lines=0 --follow=name --retry --pid=$$ build/images.log 2> /dev/null | sed -un 's/^==> \(.\{1,110\}\).*/    \1/p' &

become=()
if [ "$(id -u)" != 0 ] && ! sudo -n true 2> /dev/null; then
  echo "Installing needs root: this is sudo's password."
  become=(--ask-become-pass)
fi
.venv/bin/ansible-playbook "${become[@]}" "$@"
