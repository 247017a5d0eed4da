"""What preflight sees in the folders of members, and that members without data begin only with a permission."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interface.roles import KINDS, ROOT, module

machine = module("roles/preflight/library/preflight_machine.py")
MARK = {"kafka": "data/meta.properties", "zookeeper": "version-2/snapshot.0", "postgres": "data/PG_VERSION"}


def seen(kind: str, folder: Path) -> Any:
    """What preflight says of a member's folder."""
    return machine.held({"data": str(folder), "marks": KINDS[kind]["marks"]})


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("kind", MARK)
def test_only_the_kinds_own_mark_is_data(kind: str, tmp_path: Path) -> None:
    assert seen(kind, tmp_path / "away")["state"] == "none"
    # What the file system makes, and what the start script does
    write(tmp_path / "lost+found/x")
    write(tmp_path / "config/zoo.cfg", "x")
    assert seen(kind, tmp_path)["state"] == "none"
    write(tmp_path / MARK[kind])
    assert seen(kind, tmp_path)["state"] == "whole"
    write(tmp_path / "new-member")
    assert seen(kind, tmp_path)["state"] == "new"


def test_only_members_have_marks() -> None:
    assert {kind for kind, each in KINDS.items() if each["marks"]} == set(MARK)


def test_the_cluster_and_the_last_membership_are_read(tmp_path: Path) -> None:
    write(tmp_path / "kafka/data/meta.properties", "#\nversion=0\ncluster.id=9Xb=\nbroker.id=1\n")
    assert seen("kafka", tmp_path / "kafka")["cluster"] == "9Xb="
    folder = tmp_path / "zookeeper"
    lines = [f"server.{n}=192.0.2.{n}:2888:3888:participant;192.0.2.{n}:2181" for n in (1, 2)]
    write(folder / MARK["zookeeper"])
    assert seen("zookeeper", folder)["members"] == ["version=0"]
    write(folder / "config/zoo.cfg", "tickTime=2000\ndynamicConfigFile=/var/lib/zookeeper/config/zoo.cfg.dynamic.1a0000000b\n")
    write(folder / "config/zoo.cfg.dynamic.1a0000000b", "\n".join(lines))
    write(folder / "config/seed", "server.9=old")
    write(folder / "myid", "2\n")
    assert seen("zookeeper", folder)["members"] == [*lines, "version=1a0000000b"]
    write(folder / "seed-alone")
    assert seen("zookeeper", folder)["members"] == [lines[1], "alone"]


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs a start script with a program in place of the service, which says that it was started."""

    def run(kind: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        stubs = tmp_path / "bin"
        write(
            stubs / "postgres",
            '#!/bin/sh\n[ "$1" = --version ] && echo "postgres (PostgreSQL) 17.6 (Debian)" || echo started "$@"\n',
        )
        write(stubs / "initdb", '#!/bin/sh\nmkdir "${1#--pgdata=}" && echo 17 > "${1#--pgdata=}/PG_VERSION"\n')
        for stub in stubs.iterdir():
            stub.chmod(0o755)
        (tmp_path / "data").mkdir(exist_ok=True)
        places = {"KAFKA_DIR": str(tmp_path / "data"), "PGDATA": str(tmp_path / "data/data"), "POSTGRES_SESSION": "unlimited"}
        return subprocess.run(
            ["bash", str(ROOT / f"roles/{kind}/files/start.sh"), *arguments],
            env=os.environ | places | environment | {"PATH": f"{stubs}:{os.environ['PATH']}"},
            capture_output=True, text=True,
        )  # fmt: skip

    return run


def test_a_broker_without_data_begins_only_with_a_permission(start: Start, tmp_path: Path) -> None:
    refused = start("kafka", "echo", "started")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"The folder of this broker ({tmp_path}/data in the container) holds no data" in refused.stderr
    assert "run site.yml" in refused.stderr
    write(tmp_path / "data/new-member")
    assert start("kafka", "echo", "started").stdout == "started\n"
    # It lies with the data, so it is lost with the disk
    shutil.rmtree(tmp_path / "data")
    assert start("kafka", "echo", "started").returncode == 1
    write(tmp_path / "data/data/meta.properties")
    assert start("kafka", "echo", "started").stdout == "started\n"


def test_postgres_without_data_begins_only_with_a_permission_which_it_uses_up(start: Start, tmp_path: Path) -> None:
    refused = start("postgres")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "holds no data: data/PG_VERSION is not there" in refused.stderr
    write(tmp_path / "data/new-member")
    write(tmp_path / "data/data.new/left by a run that was killed")
    assert start("postgres").stdout.startswith("started")
    assert not (tmp_path / "data/new-member").exists()
    shutil.rmtree(tmp_path / "data/data")
    assert start("postgres").returncode == 1


def test_data_of_another_postgres_is_refused_in_words(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "data/data/PG_VERSION", "16\n")
    refused = start("postgres")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "was made by PostgreSQL 16, and this image has PostgreSQL 17" in refused.stderr
    assert "docs/operations.md" in refused.stderr
    write(tmp_path / "data/data/PG_VERSION", "17\n")
    assert start("postgres").stdout.startswith("started")


def test_a_second_postgres_in_one_folder_leaves_the_first_alone(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "data/data/PG_VERSION", "17\n")
    write(tmp_path / "data/data/postmaster.pid", "1")
    with subprocess.Popen(["flock", str(tmp_path / "data"), "cat"], stdin=subprocess.PIPE) as first:
        # Until it has the lock
        while not subprocess.run(["flock", "-n", str(tmp_path / "data"), "true"]).returncode:
            pass
        refused = start("postgres")
        assert first.stdin
        first.stdin.close()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Another container runs a database in the same folder" in refused.stderr
    assert (tmp_path / "data/data/postmaster.pid").exists()
    assert start("postgres").stdout.startswith("started")
    assert not (tmp_path / "data/data/postmaster.pid").exists()


LINES = [f"server.{n}=127.0.1.{n}:2888:3888:participant;127.0.1.{n}:1" for n in (1, 2)]


@pytest.fixture
def member(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """Starts the ZooKeeper of id 2 with a configuration of the test's own; no other member answers."""
    config = tmp_path / "etc"
    write(config / "live/members", "\n".join([*LINES, ""]))
    write(config / "zoo.cfg", "tickTime=2000\n")
    write(config / "super.cfg", "digest=x\n")
    write(tmp_path / "start.sh", (ROOT / "roles/zookeeper/files/start.sh").read_text().replace("/etc/tachograph", str(config)))
    (tmp_path / "data").mkdir()
    return lambda: subprocess.run(
        ["bash", str(tmp_path / "start.sh"), "2", "echo", "started"],
        env=os.environ | {"ZOOKEEPER_DIR": str(tmp_path / "data")}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_member_without_data_begins_only_with_a_permission(
    member: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    refused = member()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "holds no data: version-2 has neither a snapshot nor a log" in refused.stderr
    # Nothing of it is written to what lies under a disk that is not mounted
    assert list((tmp_path / "data").iterdir()) == []
    write(tmp_path / "data/new-member", "begin\n")
    assert member().stdout.startswith("started")
    assert (tmp_path / "data/config/seed").read_text().splitlines() == LINES


def test_a_member_that_joins_others_forms_no_ensemble_without_them(
    member: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write(tmp_path / "data/new-member", "join\n")
    refused = member()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "None of the other members answers" in refused.stderr


def test_the_seed_goes_on_alone_and_once(member: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    write(tmp_path / "data/version-2/snapshot.0")
    write(tmp_path / "data/config/zoo.cfg", "dynamicConfigFile=/x/zoo.cfg.dynamic.100000000\n")
    write(tmp_path / "data/config/zoo.cfg.dynamic.100000000", "\n".join(LINES))
    assert member().stdout.startswith("started")
    assert "zoo.cfg.dynamic.100000000" in (tmp_path / "data/config/zoo.cfg").read_text()
    write(tmp_path / "data/seed-alone")
    assert member().stdout.startswith("started")
    assert (tmp_path / "data/config/seed").read_text().splitlines() == LINES[1:]
    assert not (tmp_path / "data/seed-alone").exists()
