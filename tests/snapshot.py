#!/usr/bin/env python3
"""What a host has of all that the product could leave on it, a sorted line each.

Equal before site.yml and after a teardown with data, on a host that had its engine before. Run as root on the host; needs nothing
but Python. Paths with their modes and owners, what the engine holds, users, groups, rules of the packet filter, and units that
failed. In a playbook:

    - ansible.builtin.script: {cmd: "{{ playbook_dir }}/../../tests/snapshot.py", executable: python3}
      register: before
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Iterator

FOLDERS = ("/etc", "/opt", "/root", "/run/lock", "/srv", "/usr/local", "/var/lib", "/var/log", "/var/tmp")
NOT_OURS = re.compile(
    "|".join(
        (
            # The engine's own, which is asked itself
            r"/var/lib/(docker|containerd)(/|$)|/etc/docker/key\.json$",
            # What systemd, sshd and the kernel's log keep for themselves
            r"/var/lib/systemd/|/var/lib/private|/var/tmp/systemd-|/var/log/(journal/|[bw]tmp|lastlog|auth|syslog|daemon|kern|user|messages|debug)",
            # Ansible's, by which this script comes to the host
            r"/root/\.ansible(/|$)",
            # The log of an engine that runs without systemd
            r"/var/log/tachograph-dockerd\.log$",
        )
    )
)
ENGINE = {
    "container": ("ps", "--all", "--format={{.Names}}"),
    "image": ("images", "--format={{.Repository}}:{{.Tag}} {{.ID}}"),
    "network": ("network", "ls", "--format={{.Name}} {{.Driver}}"),
    "volume": ("volume", "ls", "--format={{.Name}}"),
}


def paths() -> Iterator[str]:
    """Every file, folder and link below the folders, with its mode and owner."""
    for folder in FOLDERS:
        for place, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not NOT_OURS.match(os.path.join(place, name))]
            for path in (os.path.join(place, name) for name in folders + files):
                if NOT_OURS.match(path):
                    continue
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    # It went while this ran
                    continue
                target = f" -> {os.readlink(path)}" if stat.S_ISLNK(status.st_mode) else ""
                yield f"path {path} {stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}{target}"


def lines(*command: str) -> list[str]:
    """What a command prints; nothing where there is no such command, or where it has nothing to ask."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []


def snapshot() -> list[str]:
    """All lines."""
    found = list(paths())
    found += [f"{kind} {line}" for kind, command in ENGINE.items() for line in lines("docker", *command)]
    found += [f"user {each.pw_name} {each.pw_uid}:{each.pw_gid} {each.pw_dir}" for each in pwd.getpwall()]
    found += [f"group {each.gr_name} {each.gr_gid} {','.join(each.gr_mem)}" for each in grp.getgrall()]
    # Counters of packets stand in brackets
    found += [f"rule {line.partition(' [')[0]}" for line in lines("iptables-save") if not line.startswith("#")]
    found += [
        f"failed {line.split()[0]}" for line in lines("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--full")
    ]
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(snapshot()))
