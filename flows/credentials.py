"""Credentials of storage from a Prefect block, put where the storage clients look: the environment.

A block is read when a run starts and is never written anywhere: the settings carry its name only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prefect.blocks.core import Block
from pydantic import SecretStr

from eigenshift.base.errors import SettingsError

AWS_FIELDS = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "region_name": "AWS_DEFAULT_REGION",
}


def use_credentials(slug: str | None) -> None:
    """Set the environment variables a block holds, for this process and those it starts.

    Args:
        slug: `type/name` as in the Prefect UI, e.g. "secret/eigenshift"; None changes nothing.

    Raises:
        SettingsError: There is no such block, or it holds something else.
    """
    if slug is None:
        return
    try:
        block = Block.load(slug)
    except ValueError as error:
        raise SettingsError(
            f"execution.credentials_block: expected a block {slug!r}, found none on this Prefect "
            "server. Make it in the UI under Blocks, or name another."
        ) from error
    os.environ.update(_read_variables(slug, block))


def _read_variables(slug: str, block: Any) -> dict[str, str]:
    if hasattr(block, "aws_access_key_id"):
        found = {name: _reveal(getattr(block, field)) for field, name in AWS_FIELDS.items()}
        parameters = getattr(block, "aws_client_parameters", None)
        found["AWS_ENDPOINT_URL_S3"] = getattr(parameters, "endpoint_url", None)
        return {name: str(value) for name, value in found.items() if value}
    value = block.get() if hasattr(block, "get") else None
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise SettingsError(
            f"execution.credentials_block: expected {slug!r} to be aws-credentials, or a secret "
            "holding a JSON object of environment variables (names and texts), found something "
            "else. Its content is not shown. Correct it in the Prefect UI."
        )
    return dict(value)


def _reveal(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
