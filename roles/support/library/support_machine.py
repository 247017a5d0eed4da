#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: what a helper needs to know of a machine."""

from __future__ import annotations

DOCUMENTATION = """
module: support_machine
short_description: Collect logs, configuration and what a machine says of itself
description:
  - Changes nothing, and collects what there is; what is not there is named. Every text is bounded, and its end is kept.
  - Files that only their service may read are secrets. They are left out, and returned apart so that their contents can be masked.
options:
  instance:
    description: The instance, whose label its containers carry.
    type: str
    required: true
  config_dir:
    description: Folder of the instance's files.
    type: path
    required: true
  engine_log:
    description: Log of an engine that was started without systemd.
    type: path
    required: true
  database:
    description: Name of the database.
    type: str
    required: true
  database_port:
    description: Port of the database.
    type: int
    required: true
  lines:
    description: Lines of each log, at most.
    type: int
    required: true
  bytes:
    description: Bytes of each text, at most.
    type: int
    required: true
  seconds:
    description: Time for everything; what was not asked for by then is missing.
    type: int
    required: true
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Collect what the machine has
  support_machine:
    instance: tachograph
    config_dir: /etc/tachograph/tachograph
    engine_log: /var/log/tachograph-dockerd.log
    database: av_telemetry
    database_port: 5432
    lines: 2000
    bytes: 1048576
    seconds: 150
  no_log: true
"""

RETURN = """
files:
  description: Name to text.
  type: dict
  returned: always
missing:
  description: What could not be collected, a sentence each.
  type: list
  returned: always
secrets:
  description: What no text may show.
  type: list
  returned: always
"""

import glob
import os
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

TIMEOUT = 30
UNITS = "/etc/systemd/system"
TABLES = """
SELECT c.relname AS table, pg_size_pretty(pg_total_relation_size(c.oid)) AS size, c.reltuples::bigint AS about_rows
  FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace ORDER BY 1;
SELECT topic, topic_id, partition, next FROM stream_offset ORDER BY 1, 2, 3;
SELECT state, reason, count(*) AS gaps, sum(to_seq - from_seq + 1) AS seqs FROM gap GROUP BY 1, 2 ORDER BY 1, 2;
SELECT (SELECT count(*) FROM dead_letter) AS dead_letters, (SELECT count(*) FROM conflict) AS conflicts,
  (SELECT count(*) FROM lost_range) AS lost_ranges;
SELECT usename, application_name, state, wait_event_type, wait_event, now() - state_change AS since FROM pg_stat_activity
  WHERE backend_type = 'client backend' ORDER BY 1, 2;
"""


class Collection:
    """Texts by name, and what is missing."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.files: dict[str, str] = {}
        self.missing: list[str] = []
        self._limit = limit
        self._end = time.monotonic() + seconds

    def put(self, name: str, text: str) -> None:
        """Keep a text, of a long one its end."""
        cut = len(text) - self._limit
        self.files[name] = text if cut <= 0 else f"[{cut} characters before are left out]\n{text[cut:]}"

    def run(self, name: str, *command: str) -> None:
        """Keep what a command prints, with its status if that is not 0."""
        seconds = min(TIMEOUT, self._end - time.monotonic())
        if seconds <= 0:
            self.missing.append(f"{name}: no time was left to ask for it")
            return
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds
            )
        except FileNotFoundError:
            self.missing.append(f"{name}: there is no command {command[0]}")
            return
        except subprocess.TimeoutExpired:
            self.missing.append(f"{name}: {' '.join(command[:2])} did not answer for {seconds:.3g} s")
            return
        self.put(name, done.stdout + (f"[status {done.returncode}]\n" if done.returncode else ""))

    def read(self, name: str, path: str) -> None:
        """Keep a file's end."""
        try:
            with open(path, "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - self._limit))
                self.put(name, stream.read().decode(errors="replace"))
        except OSError as error:
            self.missing.append(f"{name}: {error.strerror}")


def commands(instance: str, units: list[str], systemd: bool, lines: int) -> dict[str, list[str]]:
    """Name to what is asked of every machine."""
    label = f"--filter=label=tachograph.instance={instance}"
    asked = {
        "kernel": ["uname", "-a"],
        "memory": ["cat", "/proc/meminfo"],
        "load": ["cat", "/proc/loadavg", "/proc/uptime"],
        "disks": ["df", "-hT"],
        "inodes": ["df", "-i"],
        "addresses": ["ip", "-brief", "address"],
        "listening": ["ss", "-ltnp"],
        "kernel-log": ["dmesg", "--level=emerg,alert,crit,err,warn"],
        "engine/version": ["docker", "version"],
        "engine/info": ["docker", "info"],
        "engine/disk": ["docker", "system", "df"],
        "engine/containers": ["docker", "ps", "--all", "--size", label],
        "engine/volumes": ["docker", "volume", "ls", label],
        "engine/images": ["docker", "images", "--filter=label=tachograph.image"],
    }
    if systemd:
        asked["clock"] = ["timedatectl"]
        asked["engine/journal"] = ["journalctl", "--no-pager", f"--lines={lines}", "--unit=docker"]
    if units:
        names = [os.path.basename(path) for path in units]
        asked["units/journal"] = ["journalctl", "--no-pager", f"--lines={lines}", *(f"--unit={name}" for name in names)]
        asked["units/status"] = ["systemctl", "--no-pager", "--lines=0", "--full", "status", *names, "docker.service"]
    return asked


def of_container(name: str, kind: str, lines: int, database: str, port: int) -> dict[str, list[str]]:
    """Name to what is asked of a container."""
    asked = {
        f"logs/{name}": ["docker", "logs", "--timestamps", f"--tail={lines}", name],
        f"inspect/{name}": ["docker", "inspect", name],
    }
    if kind == "consumer":
        tool = ["docker", "exec", name, "python", "-m", "telemetry"]
        asked |= {f"kafka/topic-by-{name}": [*tool, "topic"], f"kafka/offsets-by-{name}": [*tool, "remedy", "partitions"]}
    if kind == "postgres":
        asked["database/tables"] = ["docker", "exec", name, "psql", "-X", f"--port={port}", f"--dbname={database}", "-c", TABLES]
    return asked


def containers(instance: str) -> list[tuple[str, str]]:
    """Name and kind of the instance's containers; none where no engine answers, which what was asked of it shows."""
    command = ["docker", "ps", "--all", f"--filter=label=tachograph.instance={instance}"]
    try:
        done = subprocess.run(
            [*command, '--format={{.Names}}\t{{.Label "tachograph.kind"}}'], capture_output=True, text=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [(name, kind) for name, kind in (line.split("\t") for line in done.stdout.splitlines())]


def units_of(instance: str) -> list[str]:
    """Paths of the instance's units, by the line that says whose they are."""
    mine = []
    for path in sorted(glob.glob(f"{UNITS}/*.service")):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as stream:
                if f"X-Tachograph-Instance={instance}" in stream.read().splitlines():
                    mine.append(path)
    return mine


def configuration(collection: Collection, folder: str) -> list[str]:
    """Keep the files below a folder, but those that are secrets, which are returned."""
    secrets = []
    for place, _, names in sorted(os.walk(folder)):
        for path in (os.path.join(place, name) for name in sorted(names)):
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                collection.read(f"files{path}", path)
            elif stat.S_ISREG(mode):
                with open(path, encoding="utf-8", errors="replace") as stream:
                    secrets.append(stream.read())
    return secrets


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "config_dir": {"type": "path", "required": True},
            "engine_log": {"type": "path", "required": True},
            "database": {"type": "str", "required": True},
            "database_port": {"type": "int", "required": True},
            "lines": {"type": "int", "required": True},
            "bytes": {"type": "int", "required": True},
            "seconds": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    collection = Collection(given["bytes"], given["seconds"])
    instance, systemd = given["instance"], os.path.isdir("/run/systemd/system")
    units = units_of(instance)
    asked = commands(instance, units, systemd, given["lines"])
    there = containers(instance)
    if not there:
        collection.missing.append(
            "containers: the engine has none of the instance, or does not answer; engine/containers says which"
        )
    for name, kind in there:
        asked |= of_container(name, kind, given["lines"], given["database"], given["database_port"])
    with ThreadPoolExecutor(max_workers=4) as pool:
        ending = {name: ".json" if name.startswith("inspect/") else ".txt" for name in asked}
        for each in [pool.submit(collection.run, f"{name}{ending[name]}", *command) for name, command in asked.items()]:
            each.result()
    collection.read("os-release.txt", "/etc/os-release")
    if not systemd:
        collection.read("engine/log.txt", given["engine_log"])
    for path in units:
        collection.read(f"units/{os.path.basename(path)}", path)
    secrets = configuration(collection, given["config_dir"])
    module.exit_json(changed=False, files=collection.files, missing=sorted(collection.missing), secrets=secrets)


if __name__ == "__main__":
    main()
