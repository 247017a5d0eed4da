"""What an operator relies on: a second run changes nothing, nothing is exposed, and an end leaves nothing."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from system.deployment import (
    BUILD,
    INSTANCE,
    KEEP,
    NODES,
    ROOT,
    Database,
    all_healthy,
    containers,
    docker,
    main_process,
    memory,
    play,
    started,
    wait_for,
)

SECRETS = ROOT / "secrets" / INSTANCE


def test_a_second_run_changes_nothing_and_is_cheap(summary: dict[str, Any]) -> None:
    before = started()
    assert play("up-again", "site.yml", "fleet.yml", "playbooks/self_check.yml").changed == 0
    again = play("again", "site.yml", callback="ansible.posix.json")
    assert again.changes() == {}
    assert started() == before
    calls = again.module_calls()
    print(f"module calls of a site.yml that changes nothing: {calls}")
    assert calls <= 120


def test_nothing_listens_wider_than_its_address(summary: dict[str, Any]) -> None:
    allowed = set(NODES.values()) | {"127.0.0.1"}
    heard = set()
    for name in containers():
        init = docker("inspect", "--format", "{{.State.Pid}}", name).strip()
        inodes = sockets(int(init))
        for line in Path(f"/proc/{init}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])[::-1]
                heard.add((name, ".".join(map(str, raw))))
        for line in Path(f"/proc/{init}/net/tcp6").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                tail = bytes.fromhex(fields[1].split(":")[0][24:])[::-1]
                heard.add((name, ".".join(map(str, tail))))
    assert len({name for name, _ in heard}) == len(containers())
    assert {address for _, address in heard} <= allowed


def sockets(init: int) -> set[str]:
    """Inodes of the sockets of a container's processes."""
    found, waiting = set(), [init]
    while waiting:
        process = waiting.pop()
        # A health check's process may end meanwhile
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            waiting += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
            for file in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = str(file.readlink())
                    if target.startswith("socket:["):
                        found.add(target[8:-1])
    return found


# Seconds that a service may take to end
STOP = {"zookeeper": 30, "kafka": 120, "postgres": 60, "nginx": 15, "producer": 20, "consumer": 30, "vehicle": 30}


def test_containers_are_hardened_and_bounded(summary: dict[str, Any]) -> None:
    for inspected in json.loads(docker("inspect", *containers())):
        host = inspected["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert not host["Privileged"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] == host["MemorySwap"] > 0
        assert host["PidsLimit"] == 512
        assert inspected["Config"]["StopTimeout"] == STOP[inspected["Config"]["Labels"]["tachograph.kind"]]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", inspected["Config"]["User"])
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
        # What the kernel says, of the service's own process
        status = Path(f"/proc/{main_process(inspected['Name'].lstrip('/'))}/status").read_text()
        assert re.findall(r"^(?:CapEff|CapBnd|NoNewPrivs):\t(\w+)$", status, re.MULTILINE) == ["0" * 16, "0" * 16, "1"]


def test_no_secret_is_seen_anywhere(summary: dict[str, Any]) -> None:
    secrets = [file.read_text().strip() for file in SECRETS.iterdir()]
    assert secrets
    for file in SECRETS.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    seen = docker("inspect", *containers())
    seen += "".join(docker("logs", name) for name in containers())
    seen += "".join(file.read_text() for file in BUILD.glob("*.log"))
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seen += file.read_text(errors="replace")
    assert not any(secret in seen for secret in secrets)


def test_the_writer_has_no_more_rights_than_it_needs(database: Database) -> None:
    def may(role: str, what: str, table: str = "diag") -> bool:
        return bool(database.value(f"SELECT has_table_privilege('{role}', '{table}', '{what}')"))

    assert may("telemetry_writer", "INSERT")
    assert not may("telemetry_writer", "DELETE")
    assert not may("telemetry_writer", "UPDATE")
    assert not may("telemetry_writer", "TRUNCATE")
    assert may("telemetry_reader", "SELECT")
    assert not may("telemetry_reader", "INSERT")
    assert not database.value("SELECT has_schema_privilege('telemetry_writer', 'public', 'CREATE')")
    assert not database.value("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'telemetry_owner'")


def test_memory_at_rest_is_below_four_gigabytes(summary: dict[str, Any]) -> None:
    used = [memory(name) for name in containers()]
    print(f"memory of all {len(used)} containers: {sum(used) / 2**20:.0f} MiB")
    assert all(used)
    assert sum(used) < 4 * 2**30


def test_the_end_keeps_the_data_and_destruction_leaves_nothing(database: Database) -> None:
    if KEEP:
        pytest.skip("TACHOGRAPH_KEEP=1: the deployment stays")
    rows = database.value("SELECT count(*) FROM diag")
    play("stop", "teardown.yml")
    assert containers() == []
    assert not Path(f"/etc/tachograph/{INSTANCE}").exists()
    play("start", "site.yml")
    wait_for("all healthy", all_healthy, 120)
    assert database.value("SELECT count(*) FROM diag") >= rows
    play("destroy", "teardown.yml", "-e", "teardown_data=true")
    assert containers() == []
    assert docker("volume", "ls", "--quiet", "--filter", f"label=tachograph.instance={INSTANCE}") == ""
    assert not Path(f"/etc/tachograph/{INSTANCE}").exists()
    assert not SECRETS.exists()
