"""What a teardown takes, and how: whose things, with --limit, and where nothing is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from interface.roles import module

teardown = module("roles/teardown/library/teardown_machine.py")
ALL = ["vehicle", "nginx", "producer", "consumer", "postgres", "kafka", "zookeeper", "any"]


class Host:
    """A machine with an engine, systemd and a packet filter, of which commands take things away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units, self.files, self.engine_dir = folder / "units", folder / "files", folder / "engine"
        for path in (self.units, self.files, self.engine_dir):
            path.mkdir()
        monkeypatch.setattr(teardown, "UNITS", self.units)
        monkeypatch.setattr(teardown, "FILES", self.files)
        monkeypatch.setattr(teardown, "CONTAINERS", self.engine_dir)
        self.engine = True
        self.containers: dict[str, tuple[str, str, str]] = {}
        self.volumes: dict[str, tuple[str, str, str]] = {}
        self.devices: dict[str, Path] = {}
        self.asked: list[str] = []

    def has(self, instance: str, node: str, *kinds: str, labelled: bool = True) -> None:
        """Put containers, volumes, units and files of a node there."""
        for kind in kinds:
            name, labels = f"{instance}-{kind}-{node}", (instance, kind, node if labelled else "")
            self.containers[name] = labels
            if kind in ("kafka", "zookeeper", "postgres"):
                self.volumes[f"{name}-data"] = labels
            (self.units / f"{name}.service").write_text(f"[Unit]\nX-Tachograph-Instance={instance}\n")
            (self.files / instance / f"{kind}-{node}").mkdir(parents=True)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """What a command would do and say."""
        self.asked.append(" ".join(command))
        match command:
            case ["docker", "version", *_]:
                return (0, "26", "") if self.engine else (1, "", "no engine")
            case ["docker", "ps", "--all", wanted, *_]:
                return 0, self._listed(self.containers, wanted), ""
            case ["docker", "volume", "ls", wanted, *_]:
                return 0, self._listed(self.volumes, wanted), ""
            case ["docker", "rm", "--force", "--volumes", *names]:
                self.containers = {name: each for name, each in self.containers.items() if name not in names}
            case ["docker", "volume", "inspect", "--format", _, *names]:
                return 0, "".join(f"{self.devices.get(name, '')}\n" for name in names), ""
            case ["docker", "volume", "rm", *names]:
                self.volumes = {name: each for name, each in self.volumes.items() if name not in names}
            case ["docker", "images", *_]:
                return 0, "tachograph/kafka:1\n<none>:<none>\n", ""
            case ["iptables", "-w", "10", "-nL", "INPUT", *_]:
                return 0, "1 DROP all /* other */\n2 DROP all /* tachograph-verify i */\n3 DROP all /* tachograph-verify i */\n", ""
            case ["systemctl", "is-failed", *_]:
                return 1, "", ""
        return 0, "", ""

    def _listed(self, things: dict[str, tuple[str, str, str]], wanted: str) -> str:
        instance = wanted.rpartition("=")[2]
        return "".join(f"{name}\t{kind}\t{node}\n" for name, (of, kind, node) in things.items() if of == instance)

    def tear_down(self, instance: str, nodes: list[str], dry: bool = False, **how: Any) -> dict[str, Any]:
        """Run the module."""
        made = teardown.Machine(self.run, instance, nodes, dry)
        answer: dict[str, Any] = teardown.tear_down(made, how.pop("kinds", ALL), how.pop("data", False), how.pop("kill", False))
        return answer

    def names(self) -> set[str]:
        """All that is there."""
        files = {str(path.relative_to(self.files)) for path in self.files.glob("*/*")}
        return {*self.containers, *self.volumes, *files, *(path.name for path in self.units.iterdir())}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_removing_the_trial_leaves_another_instance_untouched(host: Host) -> None:
    host.has("fleet", "alpha", "zookeeper", "kafka", "postgres", "nginx")
    # Whose name begins with the trial's, and whose node has the same name
    host.has("tachograph-nginx", "node1", "kafka", "nginx")
    others = host.names()
    host.has("tachograph", "node1", "zookeeper", "kafka", "postgres", "nginx")
    host.has("tachograph", "node2", "kafka", labelled=False)
    answer = host.tear_down("tachograph", ["node1", "node2"], data=True, kill=True, kinds=["any"])
    assert host.names() == others
    # A unit, a container and a folder of each, and the volumes of those that have data
    assert len(answer["removed"]) == 3 * 5 + 4


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("node", "others"), [("a", ["a-b", "a.b", "aa"]), ("a.b", ["a", "a-b", "acb"]), ("a-b", ["a", "b"])])
def test_a_limit_takes_exactly_its_nodes(host: Host, node: str, others: list[str], labelled: bool) -> None:
    for each in others:
        host.has("i", each, "kafka", "nginx", labelled=labelled)
    kept = host.names()
    host.has("i", node, "kafka", "nginx", labelled=labelled)
    host.tear_down("i", [node], data=True)
    assert host.names() == kept


def test_what_belongs_to_nodes_that_nobody_named_stays(host: Host) -> None:
    host.has("i", "foreign", "kafka")
    kept = host.names()
    assert host.tear_down("i", ["node1"], data=True)["removed"] == [f"rule {number} of chain INPUT" for number in (3, 2)]
    assert host.names() == kept


def test_data_stays_unless_asked_for(host: Host) -> None:
    host.has("i", "a", "kafka", "postgres")
    answer = host.tear_down("i", ["a"])
    assert host.names() == {"i-kafka-a-data", "i-postgres-a-data"}
    assert answer["kept"] == ["volume i-kafka-a-data", "volume i-postgres-a-data", "image tachograph/kafka:1"]
    assert host.tear_down("i", ["a"], data=True)["kept"] == []
    assert host.names() == set()
    assert not (host.files / "i").exists()


def test_kinds_go_in_their_order_and_systemd_is_told_once(host: Host) -> None:
    host.has("i", "a", "zookeeper", "kafka", "nginx")
    host.tear_down("i", ["a"])
    stops = [line for line in host.asked if line.startswith("docker stop")]
    assert stops == ["docker stop i-nginx-a", "docker stop i-kafka-a", "docker stop i-zookeeper-a"]
    assert host.asked.index("systemctl disable --now i-kafka-a.service") < host.asked.index("docker stop i-kafka-a")
    assert host.asked.count("systemctl daemon-reload") == 1


def test_the_fleet_alone_goes(host: Host) -> None:
    host.has("i", "a", "nginx")
    kept = host.names()
    host.has("i", "a", "vehicle")
    host.tear_down("i", ["a"], kinds=["vehicle"])
    assert host.names() == kept


@pytest.mark.parametrize(
    ("kill", "first"), [(False, "docker stop i-kafka-a i-nginx-a"), (True, "docker stop -t 0 i-kafka-a i-nginx-a")]
)
def test_only_where_nothing_is_kept_all_is_killed(host: Host, kill: bool, first: str) -> None:
    host.has("i", "a", "kafka", "nginx")
    host.tear_down("i", ["a"], data=True, kill=kill, kinds=["any"])
    assert next(line for line in host.asked if line.startswith("docker stop")) == first


@pytest.mark.parametrize(("dry", "data", "left"), [(False, True, {"lost+found"}), (True, True, None), (False, False, None)])
def test_a_folder_of_data_is_emptied_with_its_volume_and_stays(
    host: Host, tmp_path: Path, dry: bool, data: bool, left: set[str] | None
) -> None:
    host.has("i", "a", "kafka", "zookeeper")
    folder = tmp_path / "srv"
    for name in ("data/topic-0", "lost+found"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    host.devices["i-kafka-a-data"] = folder
    answer = host.tear_down("i", ["a"], dry=dry, data=data)
    assert (f"contents of {folder}" in answer["removed"]) is data
    assert {each.name for each in folder.iterdir()} == (left or {"data", "link", "lost+found"})
    assert (tmp_path / "elsewhere/kept").exists()


def test_a_dry_run_lists_all_and_changes_nothing(host: Host) -> None:
    host.has("i", "a", "kafka", "nginx")
    before = host.names()
    answer = host.tear_down("i", ["a"], dry=True, data=True, kill=True)
    assert answer["changed"]
    assert {"container i-kafka-a", "volume i-kafka-a-data", "unit i-nginx-a.service"} <= set(answer["removed"])
    assert host.names() == before
    assert not [line for line in host.asked if re.search(r" (stop|rm|disable|daemon-reload|-D) ?", line)]


def test_a_second_time_nothing_changes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.has("i", "a", "kafka")
    run = host.run
    monkeypatch.setattr(host, "run", lambda command: (1, "", "") if command[0] == "iptables" else run(command))
    assert host.tear_down("i", ["a"])["changed"]
    assert not host.tear_down("i", ["a"])["changed"]


def test_a_stopped_engine_with_containers_is_refused(host: Host) -> None:
    host.engine = False
    assert host.tear_down("i", ["a"])["kept"] == []
    (host.engine_dir / "abc").mkdir()
    with pytest.raises(teardown.Failed, match=r"No engine answers, but .* holds containers"):
        host.tear_down("i", ["a"])


def test_a_command_that_fails_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.has("i", "a", "kafka")
    run = host.run
    monkeypatch.setattr(
        host, "run", lambda command: (1, "", "in use\n") if command[:3] == ["docker", "volume", "rm"] else run(command)
    )
    with pytest.raises(teardown.Failed, match="docker volume rm i-kafka-a-data: in use"):
        host.tear_down("i", ["a"], data=True)
