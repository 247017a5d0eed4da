# Functions that ask members of an ensemble; an address is ADDRESS:PORT.
set -euo pipefail

# ask ADDRESS COMMAND
ask() { timeout 3 bash -c 'exec 3<>"/dev/tcp/${1%:*}/${1##*:}" && echo "$2" >&3 && cat <&3' - "$@" 2> /dev/null; }

# Those that serve nobody.
away() {
  local address said
  for address; do
    if ! said=$(ask "$address" srvr) || ! grep -q '^Mode: ' <<< "$said"; then echo "$address"; fi
  done
}

# Who the members are, as the leader knows: one that joins believes that it is a member. Nothing where nobody leads.
members() {
  local address said known=
  for address; do
    if ! said=$(ask "$address" conf) || ! said=$(grep '^server\.' <<< "$said"); then continue; fi
    if [[ $(ask "$address" srvr) == *"Mode: leader"* ]]; then
      echo "$said"
      return
    fi
    known+=$'\n'$(sed 's/.*;//' <<< "$said")
  done
  # It may be a member that none of the addresses is
  for address in $(sort -u <<< "$known"); do
    if [[ " $* " != *" $address "* && $(ask "$address" srvr) == *"Mode: leader"* ]]; then
      ask "$address" conf | grep '^server\.'
      return
    fi
  done
}
