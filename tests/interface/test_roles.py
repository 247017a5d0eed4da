"""All roles have one shape, their specs say what their defaults are, and services read what roles set."""

from __future__ import annotations

import re
from typing import Any

import pytest
from interface.roles import ROLES, ROOT, SERVICES, all_options, defaults, load, module, options
from telemetry.producer.publisher import BYTES_PER_BYTE, UPLOAD_OVERHEAD
from telemetry.record import MAX_BODY, MAX_NAME
from telemetry.settings import ConsumerSettings, ProducerSettings, Settings, VehicleSettings

SETTINGS: dict[str, type[Settings]] = {"producer": ProducerSettings, "consumer": ConsumerSettings, "vehicle": VehicleSettings}
RANGE = re.compile(r"\bFrom (\S+) to (\S+)\.$")


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
    files += ["vars/main.yml"] if role in SERVICES else []
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


@pytest.mark.parametrize("role", ROLES)
def test_names_show_the_owner(role: str) -> None:
    owned = {name for name in defaults(role) if role == "settings" or name.startswith(f"{role}_")}
    private = {name for name in load(f"roles/{role}/vars/main.yml") if name.startswith(f"__{role}_")}
    assert owned == set(defaults(role))
    assert private == set(load(f"roles/{role}/vars/main.yml"))


def test_every_value_has_one_home() -> None:
    homes = [name for role in ROLES for name in defaults(role)]
    assert sorted(homes) == sorted(set(homes))


@pytest.mark.parametrize("role", SERVICES)
def test_a_service_is_one_dict_that_role_container_knows(role: str) -> None:
    container = options("container")["container_service"]["options"]
    assert set(service(role)) <= set(container)
    assert {name for name, spec in container.items() if spec.get("required")} <= set(service(role))
    assert service(role)["kind"] == role
    assert f"{role}_memory" in defaults(role)


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
    assert load("roles/settings/vars/main.yml")["__settings_max_body"] == MAX_BODY
    found = RANGE.search(options("producer")["producer_queue_bytes"]["description"])
    assert found
    assert int(found[1]) >= UPLOAD_OVERHEAD + BYTES_PER_BYTE * MAX_BODY


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


def test_preflight_knows_every_kind_and_every_port() -> None:
    kinds = module("roles/preflight/action_plugins/preflight.py").KINDS
    assert sorted(kinds) == sorted(SERVICES)
    assert {kind.group for kind in kinds.values()} == set(load("roles/images/vars/main.yml")["__images_of_group"])
    assert {port for kind in kinds.values() for port in kind.ports} == {name for name in all_options() if name.endswith("_port")}


def test_every_play_has_the_tags_that_preflight_knows() -> None:
    plays = load("playbooks/site.yml") + load("playbooks/fleet.yml")
    preflight = module("roles/preflight/action_plugins/preflight.py")
    assert {tag for play in plays for tag in play["tags"]} == {"always", *preflight.TAGS}
    for play in plays:
        # What hosts are sorted into begins with the kind
        kind = re.sub("_(at_once|rolling|running)$", "", play["hosts"])
        group = preflight.KINDS[kind].group if kind in preflight.KINDS else kind
        assert group == "all" or group in play["tags"]


def test_plays_of_the_site_cover_every_group() -> None:
    plays = load("playbooks/site.yml") + load("playbooks/fleet.yml")
    hosts = {play.get("hosts", "") for play in plays}
    assert {kind.group for kind in module("roles/preflight/action_plugins/preflight.py").KINDS.values()} <= hosts


@pytest.mark.parametrize("role", ROLES)
def test_no_proxy_stands_between_hosts(role: str) -> None:
    for file in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        for task in load(str(file.relative_to(ROOT))) or []:
            for each in [task, *task.get("block", []), *task.get("rescue", []), *task.get("always", [])]:
                request = each.get("ansible.builtin.uri")
                assert request is None or request.get("use_proxy") is False, f"{file.name}: {each.get('name')}"


def test_kinds_have_one_order_wherever_they_start_or_end() -> None:
    order = load("roles/container/vars/main.yml")["__container_order"]
    assert set(order) == set(module("roles/preflight/action_plugins/preflight.py").KINDS)
    assert defaults("container")["container_restart_kinds"].split(",") == order
    turns = load("roles/teardown/vars/main.yml")["__teardown_turns"].rpartition(" else ")[2]
    assert re.findall(r"'(\w+)'", turns) == [*reversed(order), "any"]
