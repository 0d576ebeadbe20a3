"""Credentials from a Prefect block reach the storage client and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.settings import RefreshSettings
from eigenshift.store.storage import Store
from tests.support.s3_server import S3Server

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

MADE_UP_KEY = "made-up-key-of-a-test"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block sets in the environment does not outlive its test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_a_secret_block_sets_the_variables_it_holds() -> None:
    """A JSON object, as one types it into the Prefect UI."""
    from prefect.blocks.system import Secret

    from flows.credentials import use_credentials

    Secret(value=json.dumps({"EIGENSHIFT_TEST_VARIABLE": MADE_UP_KEY})).save("storage-one")
    use_credentials(None)
    assert "EIGENSHIFT_TEST_VARIABLE" not in os.environ
    use_credentials("secret/storage-one")
    assert os.environ["EIGENSHIFT_TEST_VARIABLE"] == MADE_UP_KEY


@pytest.mark.parametrize("value", [MADE_UP_KEY, {"number": 3}, ["a"]])
def test_a_block_that_holds_something_else_is_refused_without_showing_it(value: object) -> None:
    """The error names the block; its content stays secret."""
    from prefect.blocks.system import Secret

    from flows.credentials import use_credentials

    Secret(value=value).save("storage-two", overwrite=True)
    with pytest.raises(SettingsError, match="secret/storage-two") as caught:
        use_credentials("secret/storage-two")
    assert MADE_UP_KEY not in str(caught.value)


def test_a_missing_block_is_a_settings_error(load_small: Callable[..., RefreshSettings]) -> None:
    """The run ends before anything is read or written."""
    from flows.refresh import run_refresh

    settings = load_small("execution.credentials_block=secret/none-such")
    with pytest.raises(SettingsError, match="none-such"):
        run_refresh(settings)
    assert not Path(settings.store).exists()


def test_aws_credentials_are_read_field_by_field() -> None:
    """A block with the fields of prefect-aws sets the usual variables, endpoint included."""
    from types import SimpleNamespace

    from pydantic import SecretStr

    from flows.credentials import _read_variables

    block = SimpleNamespace(
        aws_access_key_id="access",
        aws_secret_access_key=SecretStr(MADE_UP_KEY),
        aws_session_token=None,
        region_name="eu-west-1",
        aws_client_parameters=SimpleNamespace(endpoint_url="http://127.0.0.1:9"),
    )
    assert _read_variables("aws-credentials/one", block) == {
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": MADE_UP_KEY,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    }


@pytest.mark.s3
def test_a_store_on_s3_opens_with_a_block_alone(s3_server: S3Server) -> None:
    """No variable is set before; with the block's, the store can be written."""
    from prefect.blocks.system import Secret
    from s3fs import S3FileSystem

    from flows.credentials import use_credentials

    for name in s3_server.environment:
        os.environ.pop(name, None)
    s3_server.make_bucket("block-bucket")
    Secret(value=json.dumps(s3_server.environment)).save("storage-s3", overwrite=True)
    use_credentials("secret/storage-s3")
    S3FileSystem.clear_instance_cache()
    Store("s3://block-bucket/store").check_writable()
