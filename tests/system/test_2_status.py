"""What an operator asks first, and hands on: `make status` and `make support`."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from system.deployment import INSTANCE, INVENTORY, ROOT, container, containers, docker, play, wait_for

SECRET = "Pl4nted/by a+test&hidden=nowhere"
PLANTED = f"{INSTANCE}-planted-node1"


def status(form: str = "json") -> tuple[int, str]:
    """Exit status and output."""
    done = subprocess.run(["scripts/status.sh", form, "-i", str(INVENTORY)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout


def well() -> dict[str, Any]:
    """The report, if all is well."""
    code, said = status()
    report: dict[str, Any] = json.loads(said)
    assert (code == 0) is report["well"]
    return report if report["well"] else {}


def test_status_says_that_all_is_well(summary: dict[str, Any]) -> None:
    report = wait_for("all is well", well, 120)
    assert sorted(each["name"] for each in report["services"]) == sorted(containers())
    assert {each["state"] for each in report["services"]} == {"running"}
    assert {each["ready"] for each in report["services"] if each["kind"] in ("producer", "consumer", "vehicle")} == {True}
    assert report["kafka"]["partitions"] == 6
    assert report["kafka"]["under_replicated"] == []
    assert list(report["lag"]["partitions"]) == [str(number) for number in range(6)]
    begun = time.monotonic()
    # It asks everybody anew, and just then somebody may take too long
    _, said = wait_for("the table of it", lambda: found if (found := status("table"))[0] == 0 else None)
    print(f"make status: {time.monotonic() - begun:.1f} s")
    assert said.splitlines()[0].split()[:2] == ["HOST", "SERVICE"]
    assert said.endswith("All is well.\n")


@pytest.fixture
def planted(summary: dict[str, Any]) -> Iterator[None]:
    """A secret in a file of the host, and in a container's arguments, environment and log, which nobody knows of."""
    own = ROOT / "secrets" / INSTANCE / "planted"
    folder = Path(f"/etc/tachograph/{INSTANCE}/planted-node1")
    own.touch(mode=0o600)
    own.write_text(f"{SECRET}\n")
    folder.mkdir()
    (folder / "plain.conf").write_text(f"# {SECRET}\nlogin = {base64.b64encode(b'user:' + SECRET.encode()).decode()}\n")
    (folder / "password").write_text("another-secret")
    (folder / "password").chmod(0o400)
    image = docker("inspect", "--format", "{{.Config.Image}}", container("vehicle", "node1")).strip()
    said = f"{SECRET} {quote(SECRET, safe='')} {base64.b64encode(SECRET.encode()).decode()} another-secret"
    labels = [f"--label=tachograph.instance={INSTANCE}", "--label=tachograph.kind=planted"]
    docker("run", "--name", PLANTED, "--network=none", *labels, f"--env=PLANTED={SECRET}", image, "echo", said)
    yield
    docker("rm", "--force", PLANTED)
    own.unlink()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_status_names_what_was_killed_and_what_is_left_over(planted: None) -> None:
    killed = container("nginx", "node2")
    # To the engine this is a stop by hand, so it does not start it again
    docker("kill", killed)
    try:
        code, said = status()
    finally:
        docker("start", killed)
    report = json.loads(said)
    assert code == 1
    assert any(reason.startswith(f"{killed} on node2: is exited with status 137") for reason in report["reasons"])
    assert any(reason.startswith(f"{PLANTED} on node1: is left over") for reason in report["reasons"])
    (row,) = [each for each in report["services"] if each["name"] == killed]
    assert row["state"] == "exited"


def test_an_archive_for_helpers_holds_no_secret(planted: None, tmp_path: Path) -> None:
    play("support", "playbooks/support.yml", "-e", f"settings_build_dir={tmp_path}")
    (path,) = tmp_path.glob("*.tar.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size < 20 * 2**20
    with tarfile.open(path) as archive:
        found = ((entry.name, archive.extractfile(entry)) for entry in archive)
        files = {name.partition("/")[2]: file.read().decode() for name, file in found if file}
    everything = "\n".join([*files, *files.values()])
    secrets = [file.read_text().strip() for file in (ROOT / "secrets" / INSTANCE).iterdir()]
    for secret in [*secrets, "another-secret"]:
        for form in (
            secret,
            quote(secret, safe=""),
            base64.b64encode(secret.encode()).decode().rstrip("=")[:-1],
            secret.encode().hex(),
        ):
            assert form not in everything
    assert base64.b64encode(b"user:" + SECRET.encode()).decode()[8:-4] not in everything
    # It was there to be masked
    assert files[f"hosts/node1/logs/{PLANTED}.txt"].count("***") == 4
    assert "PLANTED=***" in files[f"hosts/node1/inspect/{PLANTED}.json"]
    assert files[f"hosts/node1/files/etc/tachograph/{INSTANCE}/planted-node1/plain.conf"].startswith("# ***\nlogin = ")
    assert not any(name.endswith("/password") for name in files)
    # What a helper needs
    assert {f"hosts/node1/logs/{name}.txt" for name in containers()} <= set(files)
    assert "telemetry" in files[f"hosts/node1/kafka/topic-by-{container('consumer', 'node2')}.txt"]
    assert "stream_offset" in files["hosts/node1/database/tables.txt"]
    assert "broker.id=1" in files[f"hosts/node1/files/etc/tachograph/{INSTANCE}/kafka-node1/server.properties"]
    assert json.loads(files["settings.json"])["settings"]["kafka_topic"] == "telemetry"
