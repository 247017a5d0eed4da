"""What goes into an archive for helpers is bounded, and holds no secret in any form that is easily read."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interface.roles import ROOT, module

support = module("roles/support/action_plugins/support.py")
machine = module("roles/support/library/support_machine.py")

SECRETS = ["Kq3vXz81LmPq77RtYw0ZbNc5HsJd2GfA", 'p@ss/w"ord+42 %é\\', "short1"]
FORMS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda text: text.encode(),
    "in a log": lambda text: b'10:00 ERROR login of "' + text.encode() + b'" failed\n',
    "JSON": lambda text: json.dumps({"a": text}).encode(),
    "JSON within JSON": lambda text: json.dumps({"a": json.dumps({"b": text})}).encode(),
    "URL": lambda text: f"http://user:{quote(text, safe='')}@host/".encode(),
    "form": lambda text: f"a=1&pw={quote_plus(text)}&b=2".encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 with a line's end": lambda text: base64.b64encode(text.encode() + b"\n"),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()),
    "base64 of a login": lambda text: b"Authorization: Basic " + base64.b64encode(b"user:" + text.encode()),
    "base64 of another login": lambda text: base64.b64encode(b"users:" + text.encode() + b":x"),
    "base64, folded": lambda text: base64.encodebytes(b"x" * 50 + text.encode() + b"x" * 50),
    "hexadecimal": lambda text: text.encode().hex().encode(),
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_in_every_form(secret: str, form: str) -> None:
    coded = FORMS[form](secret)
    masked = support.Mask([secret.encode() + b"\n", b"another"])(coded)
    assert b"***" in masked
    for piece in support.forms(secret.encode()) | {each for each in support.in_base64(secret.encode()) if len(each) >= 4}:
        assert piece not in masked


@given(st.binary(min_size=8, max_size=40), st.binary(max_size=20), st.binary(max_size=20))
def test_base64_of_whatever_stands_around_a_secret_does_not_show_it(secret: bytes, before: bytes, after: bytes) -> None:
    value = secret.strip()
    if len(value) < 8 or b"\n" in value or b"\r" in value:
        return
    masked = support.Mask([secret])(base64.b64encode(before + value + after))
    # Two characters on either side hold bits of others too; all between them is gone
    assert b"***" in masked


def test_nothing_is_left_of_what_ends_in_padding() -> None:
    for length in range(8, 12):
        secret = SECRETS[0][:length].encode()
        assert support.Mask([secret])(b"a " + base64.b64encode(secret) + b" b") == b"a *** b"


def test_lines_of_a_key_are_secrets_too() -> None:
    key = b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"
    mask = support.Mask([key])
    assert mask(b"x " + key + b" y") == b"x ***\n y"
    assert mask(b"line 9w0BAQEFAASCBKcwggSj of it") == b"line *** of it"
    assert mask(b"-----BEGIN PRIVATE KEY-----") == b"-----BEGIN PRIVATE KEY-----"


INNER = r'"KAFKA_CLIENT={\"sasl_plain_password\": %s, \"n\": 1}"'
NAMED = {
    "sasl_plain_password=abc": "sasl_plain_password=***",
    "ssl.keystore.password: abc, next: 1": "ssl.keystore.password: ***, next: 1",
    '{"password": "a b\\"c", "port": 1}': '{"password": "***", "port": 1}',
    INNER % r"\"a b\"": INNER % r"\"***\"",
    INNER % r"\"a\\\"b\"": INNER % r"\"***\"",
    "API_TOKEN='a b' other": "API_TOKEN='***' other",
    "POSTGRES_PASSWORD_FILE=/etc/tachograph/postgres_writer": "POSTGRES_PASSWORD_FILE=/etc/tachograph/postgres_writer",
    "base-passwd=3.6.6 bash=5": "base-passwd=3.6.6 bash=5",
    "no secret here": "no secret here",
}


@pytest.mark.parametrize("text", NAMED)
def test_what_is_called_a_secret_is_masked(text: str) -> None:
    assert support.Mask([])(text.encode()).decode() == NAMED[text]


def test_a_megabyte_without_a_space_is_masked_in_seconds() -> None:
    begun = time.process_time()
    support.Mask([SECRETS[0].encode()])(b"x" * 2**20 + b'"' * 1000 + b"\\" * 2**16 + b"password=" * 1000)
    assert time.process_time() - begun < 5


def test_what_a_machine_has_is_bounded_and_its_secrets_are_kept_apart(tmp_path: Path) -> None:
    service = tmp_path / "kafka-node1"
    (service / "live").mkdir(parents=True)
    (service / "server.properties").write_text("broker.id=1\n")
    (service / "live" / "long").write_text("x" * 2000 + "end")
    (service / "postgres_writer").write_text(SECRETS[0])
    (service / "postgres_writer").chmod(0o400)
    (service / "link").symlink_to("postgres_writer")
    collection = machine.Collection(1000, 60)
    assert machine.configuration(collection, str(tmp_path)) == [SECRETS[0]]
    assert sorted(collection.files) == [f"files{service}/live/long", f"files{service}/server.properties"]
    assert len(collection.files[f"files{service}/live/long"]) == 1000
    collection.run("printed", "sh", "-c", "seq 1000; exit 3")
    assert collection.files["printed"].startswith("[")
    assert collection.files["printed"].endswith("999\n1000\n[status 3]\n")
    collection.run("nothing", "no-such-command")
    collection.read("nowhere", str(tmp_path / "nowhere"))
    assert collection.missing == ["nothing: there is no command no-such-command", "nowhere: No such file or directory"]


def test_a_container_that_hangs_is_missing_and_the_rest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TIMEOUT", 0.2)
    collection = machine.Collection(1000, 60)
    collection.run("hangs", "sleep", "5")
    monkeypatch.undo()
    collection.run("answers", "echo", "well")
    assert collection.missing == ["hangs: sleep 5 did not answer for 0.2 s"]
    assert collection.files == {"answers": "well\n"}
    late = machine.Collection(1000, 0)
    late.run("late", "echo", "well")
    assert late.missing == ["late: no time was left to ask for it"]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A host that does not answer."""
    path = tmp_path / "inventory.yml"
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1, "node_address": "198.51.100.1", "kafka_broker_id": 1}
    path.write_text(json.dumps({"kafka": {"hosts": {"away": away | {"kafka_client": {"note": f"x{SECRETS[0]}x"}}}}}))
    return path


def play(inventory: Path) -> subprocess.CompletedProcess[str]:
    folder = inventory.parent
    # The tools of this environment, and no others
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["ansible-playbook", "playbooks/support.yml", "-i", str(inventory), "-e", f"settings_secrets_dir={folder}/secrets",
         "-e", f"settings_build_dir={folder}/build"],
        cwd=ROOT, env=os.environ | {"PATH": path, "LC_ALL": "C.UTF-8"}, capture_output=True, text=True,
    )  # fmt: skip


def test_an_archive_says_what_is_missing_and_is_for_its_owner_alone(inventory: Path) -> None:
    (inventory.parent / "secrets").mkdir()
    (inventory.parent / "secrets" / "password").write_text(SECRETS[0])
    done = play(inventory)
    assert done.returncode == 0, done.stdout
    (path,) = (inventory.parent / "build").glob("support-tachograph-*.tar.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"{path}, 2 KiB" in done.stdout or str(path) in done.stdout.replace("\n", "")
    with tarfile.open(path) as archive:
        found = ((entry.name, archive.extractfile(entry)) for entry in archive)
        files = {name.partition("/")[2]: file.read().decode() for name, file in found if file}
    assert sorted(files) == ["controller.txt", "missing.txt", "settings.json", "status.json", "status.txt"]
    assert files["missing.txt"].startswith("away: everything, for it cannot be asked:")
    assert json.loads(files["settings.json"])["settings"]["kafka_client"] == {"note": "x***x"}
    assert json.loads(files["status.json"])["reasons"][0].startswith("away: cannot be asked:")


def test_nothing_is_written_where_the_secrets_are_not_known(inventory: Path) -> None:
    done = play(inventory)
    assert done.returncode != 0
    assert "settings_secrets_dir" in done.stdout
    assert not (inventory.parent / "build").exists()
