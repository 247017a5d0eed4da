"""How images are built: what reaches a builder, and in which way."""

from __future__ import annotations

import importlib.util
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parents[2] / "roles" / "images" / "files"
spec = importlib.util.spec_from_file_location("build_under_test", FILES / "build.py")
assert spec
assert spec.loader
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

PROXY = "http://alice:s%40cret@proxy.example:3128"


def test_what_may_hold_a_password_is_given_by_its_name_alone() -> None:
    environment = {
        "https_proxy": PROXY,
        "PIP_INDEX_URL": "https://alice:secret@index.example/simple",
        "HOME": "/root",
        "no_proxy": "",
    }
    dockerfile = "ARG PARENT=base\nARG PIP_INDEX_URL\n"
    assert build.build_arguments(dockerfile, {"PARENT": "p:1", "UID_BASE": "10000"}, environment) == [
        "--build-arg=PARENT=p:1",
        "--build-arg=https_proxy",
        "--build-arg=PIP_INDEX_URL",
    ]
    assert "--build-arg=PIP_INDEX_URL" not in build.build_arguments("ARG PARENT=base\n", {"PARENT": "p:1"}, environment)


def test_users_of_images_come_from_the_setting() -> None:
    users = [file for file in FILES.glob("*/Dockerfile") if "useradd" in file.read_text()]
    assert len(users) == 5
    for file in users:
        assert build.build_arguments(file.read_text(), {"UID_BASE": "20000"}, {}) == ["--build-arg=UID_BASE=20000"]


def maven(**environment: str) -> ElementTree.Element:
    """Maven's settings in that environment."""
    script = ["bash", str(FILES / "kafka" / "maven.sh"), "settings"]
    said = subprocess.run(script, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, check=True)
    return ElementTree.fromstring(said.stdout)


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        (PROXY, ("proxy.example", "3128", "alice", "s@cret")),
        ("http://proxy.example:3128/", ("proxy.example", "3128", None, None)),
        ("proxy.example:3128", ("proxy.example", "3128", None, None)),
        ("http://proxy.example", ("proxy.example", "80", None, None)),
        ("http://alice:a:b%26c%5Cn<@10.0.0.1:8080", ("10.0.0.1", "8080", "alice", "a:b&c\\n<")),
        ("http://alice@proxy.example:3128", ("proxy.example", "3128", "alice", None)),
    ],
)
def test_maven_gets_the_proxy_with_its_login(proxy: str, expected: tuple[str | None, ...]) -> None:
    settings = maven(https_proxy=proxy, no_proxy="localhost, .example.com,.corp")
    assert tuple(settings.findtext(f"proxies/proxy/{name}") for name in ("host", "port", "username", "password")) == expected
    assert settings.findtext("proxies/proxy/nonProxyHosts") == "localhost|*.example.com|*.corp"


def test_maven_goes_straight_without_a_proxy() -> None:
    assert list(maven()) == []


def test_a_password_is_in_no_command_line_of_maven(tmp_path: Path) -> None:
    (tmp_path / "mvn").write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; grep -c cret /tmp/settings.xml > {tmp_path}/settings; exit 7\n'
    )
    (tmp_path / "mvn").chmod(0o755)
    command = ["bash", str(FILES / "kafka" / "maven.sh"), "copy", str(tmp_path), str(tmp_path)]
    subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "https_proxy": PROXY}, check=False)
    assert "cret" not in (tmp_path / "arguments").read_text()
    assert (tmp_path / "settings").read_text() == "1\n"
