"""`python -m telemetry producer|consumer|vehicle`, or a tool: `selfcheck URL...`, `remedy COMMAND...`, `spool COMMAND...`, `topic`.

Exit status: 0 asked to end, 1 it cannot go on, 2 settings or arguments are wrong.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import bottle

from telemetry.settings import ConsumerSettings, KafkaSettings, ProducerSettings, Settings, SettingsError, VehicleSettings

SERVICES: dict[str, tuple[str, type[Settings]]] = {
    "producer": ("producer.service", ProducerSettings),
    "consumer": ("consumer.service", ConsumerSettings),
    "vehicle": ("vehicle.service", VehicleSettings),
}
TOOLS: dict[str, tuple[str, type[Settings]]] = {
    "selfcheck": ("selfcheck", ConsumerSettings),
    "remedy": ("consumer.remedy", ConsumerSettings),
    "spool": ("vehicle.remedy", VehicleSettings),
    "topic": ("topic", KafkaSettings),
}
"""Module and settings of what may be run."""


def main(arguments: Sequence[str]) -> int:
    """Read settings and run the service that the first argument names."""
    if not arguments or arguments[0] not in SERVICES | TOOLS:
        print(f"usage: python -m telemetry {'|'.join(SERVICES | TOOLS)}", file=sys.stderr)
        return 2
    service, rest = arguments[0], arguments[1:]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # The Kafka client tells every reconnection; what matters of it is told by /readyz
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    bottle.debug(False)
    try:
        importlib.import_module("crc32c")
    except ImportError:
        print("the package crc32c is missing: Kafka would be slow beyond use. Install it.", file=sys.stderr)
        return 2
    try:
        module, kind = (SERVICES | TOOLS)[service]
        settings = kind.load()
        if isinstance(settings, KafkaSettings):
            # Here, and not in the thread that makes the first client
            importlib.import_module("telemetry.clients").options(settings, "")
        if service not in TOOLS:
            logging.getLogger("telemetry").info("%s starts: %s", service, settings.describe())
        run = importlib.import_module(f"telemetry.{module}").run
        return int(run(settings, rest) if service in TOOLS else run(settings))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
