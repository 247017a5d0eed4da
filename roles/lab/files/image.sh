#!/usr/bin/env bash
# Makes an image for hosts, and removes those of other versions that no host uses.
#   image.sh NAME:VERSION ENGINE
set -euo pipefail
image=$1

"$(dirname "$0")/rootfs.sh" "$2" |
  docker import --change 'CMD ["/sbin/init"]' --change 'LABEL tachograph.host=true' - "$image" > /dev/null

for other in $(docker images --filter label=tachograph.host --format '{{.Repository}}:{{.Tag}}'); do
  [ "${other#*:}" != "${image#*:}" ] || continue
  [ -n "$(docker ps --all --quiet --filter "ancestor=$other")" ] || docker rmi "$other"
done
