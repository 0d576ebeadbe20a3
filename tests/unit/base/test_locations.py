"""URLs: their options are read, and no secret in them goes any further."""

from __future__ import annotations

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.base.locations import has_secret, split_options
from eigenshift.settings import load_preset
from eigenshift.store.filesystems import open_filesystem
from eigenshift.store.storage import Store

SECRETS = [
    "s3://access:made-up@bucket/store",
    "https://someone:made-up@example.org/data.csv",
    "https://bucket.example.org/data.csv?X-Amz-Signature=made-up&X-Amz-Date=1",
    "https://account.example.org/container/data.csv?sv=2024&sig=made-up",
    "https://storage.example.org/b/data.csv?X-Goog-Credential=x&X-Goog-Signature=made-up",
    "https://storage.example.org/b/data.csv?GoogleAccessId=x&Expires=1&X-Goog%2DCredential=made-up",
    "https://example.org/data.csv?access_token=made-up",
    "https://example.org/data.csv?page=1&api_key=made-up",
    "https://example.org/data.csv?apiKey=made-up",
    "https://account.example.org/container/data.csv?sas_token=made-up",
    "https://made-up@example.org/data.csv",
    "s3://bucket/store?endpoint_url=http://someone:made-up@127.0.0.1:9",
    "s3://bucket/store?endpoint_url=http%3A%2F%2Fsomeone%3Amade-up%40127.0.0.1%3A9",
]


def test_options_of_an_s3_url_reach_the_client() -> None:
    """Endpoint, addressing style and region are given to the client; nothing is asked for yet."""
    pytest.importorskip("s3fs")
    url = "s3://bucket/store?endpoint_url=http://127.0.0.1:9&addressing_style=path&region_name=x"
    filesystem, path = open_filesystem(url)
    assert path == "bucket/store"
    assert filesystem.endpoint_url == "http://127.0.0.1:9"
    assert filesystem.config_kwargs["s3"] == {"addressing_style": "path"}
    assert filesystem.client_kwargs == {"region_name": "x"}


def test_a_store_keeps_its_options_in_its_root_but_not_in_names() -> None:
    """The root opens the same store again; the URI of an object is a plain one."""
    pytest.importorskip("s3fs")
    store = Store("s3://bucket/store?endpoint_url=http://127.0.0.1:9")
    assert store.root == "s3://bucket/store?endpoint_url=http://127.0.0.1:9"
    assert store.uri("runs/a.json") == "s3://bucket/store/runs/a.json"


@pytest.mark.parametrize(
    "url", ["s3://bucket/part-?.csv", "/folder/part-?.csv", "memory://a?b=c", "part?x=1"]
)
def test_a_question_mark_of_a_glob_or_name_is_no_option(url: str) -> None:
    """Only known schemes have options, and only `key=value` is one."""
    assert split_options(url) == (url, {})


def test_an_unknown_option_is_refused() -> None:
    """A misspelt option does nothing silently; credentials are not options."""
    with pytest.raises(SettingsError, match="expected only the options endpoint_url"):
        split_options("s3://bucket/store?endpoint=http://127.0.0.1:9")


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    """Neither the settings nor the store take it, and neither error shows it."""
    assert has_secret(url)
    for use in (
        lambda: load_preset("demo", [f"sources.0.uri={url}"]),
        lambda: load_preset("demo", [f"store={url}"]),
        lambda: load_preset("demo", [f"model.id={url}"]),
        lambda: Store(url),
    ):
        with pytest.raises(SettingsError, match="credentials") as caught:
            use()
        assert "made-up" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "./folder",
        "org/model",
        "s3://bucket/a@b",
        "abfs://container@account.dfs.example.org/a",
        "https://example.org/@someone/monkey.csv?monkey=1&keys=2",
        "s3://bucket/store?endpoint_url=http://127.0.0.1:9",
    ],
)
def test_an_ordinary_location_has_no_secret(url: str) -> None:
    """An @ alone is none: Azure names its container so."""
    assert not has_secret(url)
