#!/usr/bin/python
# Copyright (c) 2026 The Tachograph authors. MIT License (see LICENSE).
"""Ansible module: what runs on a machine, and is it well."""

from __future__ import annotations

DOCUMENTATION = """
module: status_machine
short_description: Look at the containers of an instance, their units and what their services say
description:
  - Looks at one machine for all nodes that share it, and changes nothing.
  - What does not answer is an answer too; the module fails only where it is called wrongly.
options:
  instance:
    description: The instance, whose label its containers carry.
    type: str
    required: true
  containers:
    description: The containers that should be there, each with its name, kind, and places that it listens on.
    type: list
    elements: dict
    required: true
  systemd:
    description: The nodes whose containers systemd supervises.
    type: list
    elements: str
    default: []
author: The Tachograph authors
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = """
- name: Look at a machine
  status_machine:
    instance: tachograph
    containers:
      - name: tachograph-consumer-node1
        kind: consumer
        node: node1
        places: [{variable: consumer_port, address: 127.0.0.11, port: 5002}]
"""

RETURN = """
engine:
  description: The engine's version; empty where it does not answer.
  type: str
  returned: always
why:
  description: Why the engine does not answer.
  type: str
  returned: always
containers:
  description: Name to what the engine, the supervisor and the service say of it, for every container of the instance.
  type: dict
  returned: always
topic:
  description: The topic as a broker told it to a service here, or an error; empty where no service could ask.
  type: dict
  returned: always
"""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCKER_TIMEOUT = 10
TOPIC_TIMEOUT = 12
HTTP_TIMEOUT = 2
SERVICES = ("producer", "consumer", "vehicle")
"""Kinds that answer for themselves by HTTP."""
ASKERS = ("consumer", "producer")
"""Kinds from whose containers Kafka can be asked."""
BROKER = "kafka"
"""The kind whose disk is looked at: the topic grows until its retention ends."""
LAG = re.compile(r'^telemetry_lag\{partition="(\d+)"\} (\S+)$', re.MULTILINE)


class NoAnswer(Exception):
    """The text says why."""


def run(*command: str, timeout: float = DOCKER_TIMEOUT, good: tuple[int, ...] = (0,)) -> str:
    """What a command prints. Raises NoAnswer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
    except FileNotFoundError:
        raise NoAnswer(f"there is no command {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} {command[1]} did not answer for {timeout:g} s") from None
    if done.returncode not in good or (done.returncode and not done.stdout):
        raise NoAnswer((done.stdout + done.stderr).strip() or f"{command[0]} {command[1]} ended with {done.returncode}")
    return done.stdout


def inspect(instance: str) -> dict[str, dict[str, Any]]:
    """Name to the engine's description, of every container of the instance. Raises NoAnswer."""
    names = run("docker", "ps", "--all", "--quiet", f"--filter=label=tachograph.instance={instance}").split()
    if not names:
        return {}
    try:
        described = run("docker", "inspect", *names)
    except NoAnswer as error:
        # One that was removed since is missing in the next answer
        if "No such object" not in str(error):
            raise
        return inspect(instance)
    return {each["Name"].lstrip("/"): each for each in json.loads(described)}


def describe(container: dict[str, Any]) -> dict[str, Any]:
    """What the engine says of a container."""
    state = container["State"]
    ended = state["FinishedAt"] if not state["Running"] else state["StartedAt"]
    return {
        "kind": container["Config"]["Labels"].get("tachograph.kind", ""),
        "state": state["Status"],
        "exit_code": state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
        "out_of_memory": state["OOMKilled"],
        "health": state.get("Health", {}).get("Status", ""),
        "restarts": container["RestartCount"],
        "image": container["Config"]["Image"],
        # Never started, it has neither
        "since": "" if state["Status"] == "created" else f"{ended[:19]}Z",
    }


def disk_of(container: dict[str, Any]) -> dict[str, Any]:
    """Size and use in bytes of the filesystem that holds a container's volume, without what only root may use."""
    volume = next((each["Source"] for each in container["Mounts"] if each["Type"] == "volume"), "")
    try:
        found = os.statvfs(volume)
    except OSError as error:
        return {"error": f"{volume or 'its volume'}: {error.strerror}"}
    used, free = found.f_blocks - found.f_bfree, found.f_bavail
    return {"bytes": (used + free) * found.f_frsize, "used": used * found.f_frsize}


def get(place: dict[str, Any], path: str) -> str:
    """The body of an answer, whatever its status. Raises NoAnswer."""
    url = f"http://{place['address']}:{place['port']}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=HTTP_TIMEOUT) as response:
            return str(response.read(), "utf-8")
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError as error:
        raise NoAnswer(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


def ask_service(container: dict[str, Any]) -> dict[str, Any]:
    """What a service says of itself."""
    place = container["places"][0]
    try:
        readiness = json.loads(get(place, "/readyz"))
        answer = {name: readiness[name] for name in ("ready", "reasons", "degraded")}
        answer["service_version"] = json.loads(get(place, "/version"))["version"]
        if container["kind"] == "consumer":
            answer["lag"] = {number: int(float(value)) for number, value in LAG.findall(get(place, "/metrics"))}
    except NoAnswer as error:
        return {"ready": False, "reasons": [str(error)], "degraded": []}
    except (ValueError, LookupError, TypeError) as error:
        url = f"http://{place['address']}:{place['port']}"
        return {"ready": False, "reasons": [f"{url} answers what is no answer of ours: {error!r}"], "degraded": []}
    return answer


def ask_topic(names: list[str]) -> dict[str, Any]:
    """The topic, from the first of these containers that gets an answer; else why there is none."""
    answer: dict[str, Any] = {}
    for name in names[:2]:
        try:
            said = run("docker", "exec", name, "python", "-m", "telemetry", "topic", timeout=TOPIC_TIMEOUT, good=(0, 1))
            answer = json.loads(said)
        except NoAnswer as error:
            answer = {"error": str(error)}
        except ValueError as error:
            answer = {"error": f"{name} answers what is no answer of ours: {error}"}
        if "error" not in answer:
            break
    return answer


def ask_units(names: list[str]) -> dict[str, dict[str, Any]]:
    """Name of a container to what systemd says of its unit."""
    if not names:
        return {}
    wanted = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts")
    try:
        said = run("systemctl", "show", f"--property=Id,{','.join(wanted)}", *(f"{name}.service" for name in names))
    except NoAnswer as error:
        return {name: {"error": str(error)} for name in names}
    units = {}
    for block in said.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines())
        units[values["Id"].removesuffix(".service")] = {name: values.get(name, "") for name in wanted}
    return units


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "containers": {"type": "list", "elements": "dict", "required": True},
            "systemd": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    answer: dict[str, Any] = {"changed": False, "engine": "", "why": "", "containers": {}, "topic": {}}
    try:
        answer["engine"] = run("docker", "version", "--format", "{{.Server.Version}}").strip()
        seen = inspect(given["instance"])
        answer["containers"] = {name: describe(each) for name, each in seen.items()}
    except NoAnswer as error:
        answer["why"] = str(error)
        module.exit_json(**answer)

    found = answer["containers"]
    for name, each in seen.items():
        if found[name]["kind"] == BROKER:
            found[name]["disk"] = disk_of(each)
    running = [each for each in given["containers"] if found.get(each["name"], {}).get("state") == "running"]
    services = [each for each in running if each["kind"] in SERVICES]
    askers = [each["name"] for kind in ASKERS for each in running if each["kind"] == kind]
    supervised = [each["name"] for each in given["containers"] if each["node"] in given["systemd"] and each["name"] in found]
    with ThreadPoolExecutor(max_workers=8) as pool:
        topic = pool.submit(ask_topic, askers)
        units = pool.submit(ask_units, supervised)
        answers = {each["name"]: pool.submit(ask_service, each) for each in services}
        for name, said in answers.items():
            found[name].update(said.result())
        for name, unit in units.result().items():
            found[name]["unit"] = unit
        answer["topic"] = topic.result()
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
