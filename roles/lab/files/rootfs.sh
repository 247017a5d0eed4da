#!/usr/bin/env bash
# Writes a host as a tar archive to standard output: Debian 12 with systemd, sshd and a Docker Engine of its own.
#   rootfs.sh ENGINE       ENGINE=false leaves the engine out, and what talks to it
set -euo pipefail

packages=(systemd systemd-sysv dbus python3 iproute2 procps openssh-server)
if [ "$1" = true ]; then packages+=(docker.io iptables python3-requests); fi
# A host changes when somebody changes it, and not at an hour of its own: apt's timers are masked.
# Every host makes SSH keys of its own when it boots
ssh='[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\n'

exec mmdebstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='rm "$1"/etc/ssh/ssh_host_*' \
  --customize-hook='mkdir "$1/etc/systemd/system/ssh.service.d"' \
  --customize-hook="printf '$ssh' > \"\$1/etc/systemd/system/ssh.service.d/keys.conf\"" \
  --customize-hook='chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer' \
  --customize-hook='truncate --size=0 "$1/etc/machine-id"' \
  bookworm -
