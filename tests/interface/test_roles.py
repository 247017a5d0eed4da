"""All roles have one shape, their specs say what their defaults are, and services read what roles set."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from typing import Any

import pytest
import telemetry
from interface.roles import KINDS, ROLES, ROOT, all_options, defaults, load, module, options, plays
from proof import plan
from telemetry import selfcheck
from telemetry.producer.publisher import BYTES_PER_BYTE, UPLOAD_OVERHEAD
from telemetry.record import MAX_BODY, MAX_NAME
from telemetry.settings import ConsumerSettings, ProducerSettings, Settings, VehicleSettings

SETTINGS: dict[str, type[Settings]] = {"producer": ProducerSettings, "consumer": ConsumerSettings, "vehicle": VehicleSettings}
RANGE = re.compile(r"\bFrom (\S+) to (\S+)\.$")
UNITS = {"ms": "milliseconds", "seconds": "seconds", "minutes": "minutes", "hours": "hours", "days": "days"}
# With 0 they wait for nothing, as their descriptions say
MAY_BE_OFF = ("nginx_body_timeout", "vehicle_drain_timeout")


def service(role: str) -> dict[str, Any]:
    described: dict[str, Any] = load(f"roles/{role}/vars/main.yml")[f"__{role}_service"]
    return described


def text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_the_same_files(role: str) -> None:
    files = ["defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml"]
    # Role settings is values alone
    files += ["tasks/main.yml"] if role != "settings" else []
    files += ["vars/main.yml"] if role in KINDS else []
    assert [file for file in files if not (ROOT / "roles" / role / file).exists()] == []


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"settings"}))
def test_the_main_file_of_a_role_is_a_table_of_contents(role: str) -> None:
    assert len((ROOT / f"roles/{role}/tasks/main.yml").read_text().splitlines()) <= 40


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"settings"}))
def test_every_role_depends_on_settings_alone(role: str) -> None:
    assert load(f"roles/{role}/meta/main.yml") == {"dependencies": [{"role": "settings"}]}


@pytest.mark.parametrize("role", ROLES)
def test_the_spec_says_what_the_defaults_are(role: str) -> None:
    assert {name: spec["default"] for name, spec in options(role).items()} == defaults(role)


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described(role: str) -> None:
    for name, spec in options(role).items():
        assert spec["type"] in ("str", "int", "float", "bool", "list", "dict", "path"), name
        assert spec["description"].endswith("."), name
        assert spec["type"] != "list" or "elements" in spec, name


def sources() -> Iterator[tuple[str, str, str]]:
    """Name of a role, or of none for playbooks, path and text of everything that may name a variable."""
    for folder, pattern in (("roles", "*/*/*"), ("playbooks", "*")):
        for path in sorted((ROOT / folder).glob(pattern)):
            if path.suffix in (".yml", ".j2", ".py"):
                yield (path.parents[1].name if folder == "roles" else ""), str(path.relative_to(ROOT)), path.read_text()


def test_nobody_reads_the_private_variables_of_a_role() -> None:
    private = re.compile(rf"\b__({'|'.join(ROLES)})_[a-z_]+")
    found = [
        f"{path}: {each[0]}"
        for role, path, text in sources()
        for each in private.finditer(text)
        # The topic that Kafka itself makes
        if each[1] != role and each[0] != "__consumer_offsets"
    ]
    assert found == []


def test_only_role_settings_knows_how_a_container_is_called() -> None:
    kind = rf"(?:{'|'.join(KINDS)}|\{{\{{ [^}}]*kind|\{{kind)"
    typed = re.compile(rf"instance['\"]?\]? ?\}}\}}?-{kind}|instance ~ '-|config_dir \}}\}}/{kind}-")
    found = [
        f"{path}: {each[0]}"
        for role, path, text in sources()
        for each in typed.finditer(text)
        if path != "roles/settings/module_utils/tachograph_settings.py"
    ]
    assert found == []


def test_preflight_knows_what_roles_leave_for_others() -> None:
    """A name without underscores that a task registers or sets as a fact is there when the next playbook of the run is checked."""
    published = set(module("roles/preflight/action_plugins/preflight.py").PUBLISHED)
    left = set()
    for _, path, text in sources():
        if "/tasks/" in path:
            left |= {name for name in re.findall(r"register: (\w+)", text) if not name.startswith("__")}
            for task in load(path) or []:
                for each in [task, *task.get("block", [])]:
                    left |= {name for name in each.get("ansible.builtin.set_fact", {}) if not name.startswith("__")}
    assert left == published


@pytest.mark.parametrize("role", ROLES)
def test_every_number_has_a_range(role: str) -> None:
    """Preflight reads it from the end of the description. A user of its own is not root, and no wait is over at once."""
    for name, spec in options(role).items():
        found = RANGE.search(spec["description"])
        assert bool(found) is (spec["type"] in ("int", "float")), name
        if found:
            assert float(found[1]) < float(found[2]), name
            assert float(found[1]) >= 1 or not name.endswith(("_uid", "_timeout", "_timeout_ms")) or name in MAY_BE_OFF, name


@pytest.mark.parametrize("role", ROLES)
def test_a_time_is_in_seconds_unless_its_name_has_another_unit(role: str) -> None:
    for name, spec in options(role).items():
        if spec["type"] in ("int", "float"):
            named = name.rpartition("_")[2]
            said = re.match("(Milliseconds|Seconds|Minutes|Hours|Days) that", spec["description"])
            assert not said or said[1].lower() in (UNITS.get(named, named), "seconds" if named not in UNITS else ""), name
            assert ("illisecond" in spec["description"]) is (named == "ms"), name


@pytest.mark.parametrize("role", ROLES)
def test_names_show_the_owner(role: str) -> None:
    owned = {name for name in defaults(role) if role == "settings" or name.startswith(f"{role}_")}
    # Role settings has no secrets from the others
    mark = "settings_" if role == "settings" else f"__{role}_"
    private = {name for name in load(f"roles/{role}/vars/main.yml") if name.startswith(mark)}
    assert owned == set(defaults(role))
    assert private == set(load(f"roles/{role}/vars/main.yml"))


def test_every_value_has_one_home() -> None:
    homes = [name for role in ROLES for name in defaults(role)]
    assert sorted(homes) == sorted(set(homes))


@pytest.mark.parametrize("role", KINDS)
def test_a_service_is_one_dict_that_role_container_knows(role: str) -> None:
    container = options("container")["container_service"]["options"]
    assert set(service(role)) <= set(container)
    assert {name for name, spec in container.items() if spec.get("required")} <= set(service(role))
    assert service(role)["kind"] == role
    assert f"{role}_memory" in defaults(role)


@pytest.mark.parametrize("role", KINDS)
def test_a_volume_lies_where_the_table_of_kinds_says(role: str) -> None:
    paths = load("roles/settings/vars/main.yml")["settings_kinds"][role]["paths"]
    assert service(role).get("paths", {}) == {volume: f"{{{{ {name} }}}}" for volume, name in paths.items()}
    assert set(paths) <= set(service(role).get("volumes", {}))


@pytest.mark.parametrize("role", SETTINGS)
def test_services_read_exactly_what_roles_set(role: str) -> None:
    # The version is the package's own
    assert set(service(role)["environment"]) == set(SETTINGS[role].variables()) - {"TELEMETRY_VERSION"}


@pytest.mark.parametrize("role", SETTINGS)
def test_a_service_alone_has_the_defaults_of_its_role(role: str) -> None:
    given = {**defaults("settings"), **defaults(role)}
    for field in SETTINGS[role].__dataclass_fields__.values():
        variable, default = field.metadata["variable"], field.metadata["default"]
        if default is not None and not isinstance(given.get(variable.lower(), {}), dict):
            assert text(given[variable.lower()]) == default


def test_the_largest_upload_is_one_number() -> None:
    """The producers' constant is nginx' and Kafka's too, and the smallest queue has room for one."""
    assert load("roles/settings/vars/main.yml")["settings_max_body"] == MAX_BODY
    found = RANGE.search(options("producer")["producer_queue_bytes"]["description"])
    assert found
    assert int(found[1]) >= UPLOAD_OVERHEAD + BYTES_PER_BYTE * MAX_BODY


def test_the_services_and_the_roles_have_one_version_and_one_vehicle_of_the_self_check() -> None:
    assert defaults("settings")["settings_version"] == telemetry.__version__
    assert load("roles/self_check/vars/main.yml")["__self_check_vin"] == selfcheck.VIN


@pytest.mark.parametrize("role", SETTINGS)
def test_services_accept_the_whole_range_of_an_option(role: str) -> None:
    specs = all_options()
    checked = 0
    for field in SETTINGS[role].__dataclass_fields__.values():
        spec = specs.get(field.metadata["variable"].lower())
        found = RANGE.search(spec["description"]) if spec else None
        for bound in found.groups() if found else ():
            field.metadata["parse"](bound)
            checked += 1
    assert checked


def test_names_are_as_long_as_records_take_them() -> None:
    preflight = module("roles/preflight/action_plugins/preflight.py")
    lengths = {name: preflight.LENGTH.search(spec["description"]) for name, spec in options("vehicle").items()}
    assert {name: found.groups() for name, found in lengths.items() if found} == {
        "vehicle_make": ("1", str(MAX_NAME)),
        "vehicle_model": ("0", str(MAX_NAME)),
    }


def test_the_table_has_every_kind_its_image_and_its_ports() -> None:
    """A role is a service if it has a dict for role container."""
    services = {role for role in ROLES if f"__{role}_service" in load(f"roles/{role}/vars/main.yml")}
    assert services == set(KINDS)
    assert all({"group", "image", "ports", "http", "user", "paths", "marks"} == set(line) for line in KINDS.values())
    assert {port for line in KINDS.values() for port in line["ports"]} == {name for name in all_options() if name.endswith("_port")}
    assert [kind for kind, line in KINDS.items() if not (ROOT / "roles/images/files" / line["image"]).is_dir()] == []
    for kind, line in KINDS.items():
        assert f"{kind}_image" in defaults(kind), kind
        assert f"'{line['image']}'" in defaults(kind)[f"{kind}_image"], kind


def test_a_kind_is_listed_in_one_place() -> None:
    """Whoever needs all kinds or all groups takes them from the table."""
    names = {*KINDS, *(line["group"] for line in KINDS.values())}
    listed = re.compile(r"(?:\b[a-z]+\b['\"]?[ ,:]+['\"]?){5,}")
    found = []
    for path in sorted([*(ROOT / "roles").rglob("*.yml"), *(ROOT / "roles").rglob("*.py"), *(ROOT / "scripts").iterdir()]):
        text = path.read_text()
        for each in listed.finditer(text):
            if len(set(re.findall("[a-z]+", each[0])) & names) >= 5:
                found.append(f"{path.relative_to(ROOT)}: {each[0]}")
    assert found == []


def test_the_proof_knows_every_kind() -> None:
    """It imports nothing of the product, so it has a table of its own."""
    assert {kind: line["group"] for kind, line in KINDS.items()} == {kind: group for group, kind in plan.KINDS.values()}


def test_every_play_has_the_tags_that_preflight_knows() -> None:
    found = plays("site.yml", "fleet.yml")
    tags = module("roles/preflight/action_plugins/preflight.py").TAGS
    assert {tag for play in found for tag in play["tags"]} == {"always", *tags}
    for play in found:
        # What hosts are sorted into begins with the kind; of the fleet's hosts preflight says which answer
        names = [re.sub("_(rolling_first|at_once|rolling|running|new)$", "", name) for name in re.split(":&?", play["hosts"])]
        names = ["vehicles" if name in ("preflight_answering", "preflight_silent") else name for name in names]
        groups = {KINDS[name]["group"] if name in KINDS else name for name in names}
        assert groups == {"all"} or groups <= set(play["tags"])


def test_only_hosts_of_the_product_get_an_engine() -> None:
    [play] = [play for play in load("playbooks/site.yml") if "docker_engine" in play.get("roles", [])]
    # Those of the fleet get it from fleet.yml
    assert set(play["hosts"].split(":")) == {line["group"] for line in KINDS.values()} - {"vehicles"}


@pytest.mark.parametrize("role", ROLES)
def test_apt_waits_for_another_that_installs(role: str) -> None:
    for file in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        for task in load(str(file.relative_to(ROOT))) or []:
            if "ansible.builtin.apt" in task:
                assert task["ansible.builtin.apt"].get("lock_timeout") == 300, f"{file.name}: {task['name']}"


def test_a_unit_finds_docker_by_one_way() -> None:
    unit = (ROOT / "roles/container/templates/container.service.j2").read_text()
    commands = re.findall("^Exec(?:Start|Stop)=(.*)$", unit, re.MULTILINE)
    assert [re.match("/bin/sh -c 'docker (start|stop) ", command) is not None for command in commands] == [True, True]


def test_a_host_that_hangs_does_not_hold_a_run_for_ever() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "ansible.cfg")
    options = dict(option.split("=") for option in config["ssh_connection"]["ssh_args"].split() if "=" in option)
    assert 0 < int(options["ServerAliveInterval"]) * int(options["ServerAliveCountMax"]) <= 30


def test_plays_of_the_site_cover_every_group() -> None:
    hosts = {play["hosts"].removesuffix(":&preflight_answering") for play in plays("site.yml", "fleet.yml")}
    assert {line["group"] for line in KINDS.values()} <= hosts


@pytest.mark.parametrize("role", ROLES)
def test_no_proxy_stands_between_hosts(role: str) -> None:
    for file in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        for task in load(str(file.relative_to(ROOT))) or []:
            for each in [task, *task.get("block", []), *task.get("rescue", []), *task.get("always", [])]:
                request = each.get("ansible.builtin.uri")
                assert request is None or request.get("use_proxy") is False, f"{file.name}: {each.get('name')}"
