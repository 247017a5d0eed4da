#!/usr/bin/env bash
# Starts the member: start.sh ID JAVA ARGUMENT...
# ZooKeeper rewrites its configuration whenever the ensemble gets another member, so it has a copy beside its data. Who the members are
# it knows from there; the inventory's list is for a member that begins anew, or whose own address is another one now.
# A member without data could, with its vote, undo what was decided. So it begins only where a play of site.yml, which asks the other members
# first, put the file new-member into its folder. The file seed-alone, which an operator makes, lets a member that has data go on without the
# others, as an ensemble of one.
set -euo pipefail
umask 077
id=$1
shift
if ! compgen -G "$ZOOKEEPER_DIR/version-2/snapshot.*" > /dev/null && ! compgen -G "$ZOOKEEPER_DIR/version-2/log.*" > /dev/null &&
  [ ! -e "$ZOOKEEPER_DIR/new-member" ]; then
  printf '%s\n' "The folder of this member ($ZOOKEEPER_DIR in the container) holds no data: version-2 has neither a snapshot nor a log. So the" \
    "member was not started. If its disk is not mounted, mount it and start this container again. If the data is lost, run site.yml: it lets" \
    "the member begin without data once the others lead." >&2
  exit 1
fi
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
  if grep -qx join "$ZOOKEEPER_DIR/new-member" 2> /dev/null; then
    echo "None of the other members answers at its client port, so this member cannot join them. It was not started: with other members" \
      "without data it could form an ensemble that knows nothing. Open the ports between these hosts, and start this container again." >&2
    return 1
  fi
  cat /etc/tachograph/live/members
}

own=$(grep "^server\.$id=" /etc/tachograph/live/members)
members=seed
if [ -f zoo.cfg ]; then members=$(sed -n 's|^dynamicConfigFile=.*/||p' zoo.cfg); fi
if [ -e "$ZOOKEEPER_DIR/seed-alone" ]; then
  rm -f zoo.cfg.dynamic.*
  echo "$own" > seed.new
  mv seed.new seed
  members=seed
elif [ ! -f "$members" ] || ! grep -qxF "$own" "$members"; then
  rm -f zoo.cfg.dynamic.*
  { ask_others | sed "/^server\.$id=/d"; echo "$own"; } > seed.new
  mv seed.new seed
  members=seed
fi
{ cat /etc/tachograph/zoo.cfg /etc/tachograph/super.cfg; echo "dynamicConfigFile=$PWD/$members"; } > zoo.cfg.new
mv zoo.cfg.new zoo.cfg
rm -f "$ZOOKEEPER_DIR/seed-alone"
exec "$@" "$PWD/zoo.cfg"
