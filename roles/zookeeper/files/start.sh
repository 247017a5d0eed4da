#!/usr/bin/env bash
# Starts the member: start.sh ID JAVA ARGUMENT...
# ZooKeeper rewrites its configuration whenever the ensemble gets another member, so it has a copy beside its data. Who the members are
# it knows from there; the inventory's list is for a member that begins anew, or whose own address is another one now.
set -euo pipefail
umask 077
id=$1
shift
mkdir -p "$ZOOKEEPER_DIR/config"
cd "$ZOOKEEPER_DIR/config"
echo "$id" > "$ZOOKEEPER_DIR/myid"

# What a member that serves says about the members; one that begins anew must not form an ensemble of its own with others that do.
ask_others() {
  local address said
  for address in $(sed "/^server\.$id=/d; s/.*;//" /etc/tachograph/live/members); do
    if said=$(timeout 3 bash -c 'exec 3<>"/dev/tcp/${1%:*}/${1##*:}" && echo conf >&3 && cat <&3' - "$address" 2> /dev/null) &&
      grep '^server\.' <<< "$said"; then
      return
    fi
  done
  cat /etc/tachograph/live/members
}

own=$(grep "^server\.$id=" /etc/tachograph/live/members)
members=seed
if [ -f zoo.cfg ]; then members=$(sed -n 's|^dynamicConfigFile=.*/||p' zoo.cfg); fi
if [ ! -f "$members" ] || ! grep -qxF "$own" "$members"; then
  rm -f zoo.cfg.dynamic.*
  { ask_others | sed "/^server\.$id=/d"; echo "$own"; } > seed.new
  mv seed.new seed
  members=seed
fi
{ cat /etc/tachograph/zoo.cfg /etc/tachograph/super.cfg; echo "dynamicConfigFile=$PWD/$members"; } > zoo.cfg.new
mv zoo.cfg.new zoo.cfg
exec "$@" "$PWD/zoo.cfg"
