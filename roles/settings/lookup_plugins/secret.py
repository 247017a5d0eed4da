"""A secret of the instance: out of its variable, or else out of the controller's folder of secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: secret
short_description: Read a secret of the instance
description:
  - Answers the variable C(NAME_password) for each term C(NAME); where that is empty, the file C(NAME) in C(settings_secrets_dir).
  - Answers an empty text while there is neither, as in a dry run before the first run.
options:
  _terms:
    description: Names of secrets.
    required: true
"""


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Answer each secret."""

        def value(variable: str) -> str:
            return str(self._templar.template((variables or {}).get(variable, "")) or "")

        def secret(name: str) -> str:
            file = Path(value("settings_secrets_dir")) / name
            return value(f"{name}_password") or (file.read_text().strip() if file.is_file() else "")

        return [secret(term) for term in terms]
