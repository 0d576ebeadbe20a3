"""The shipped bucket policies allow what a refresh and an audit do, and nothing besides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.settings import RefreshSettings
from eigenshift.upkeep.verification import verify_store

FOLDER = Path(__file__).parents[2] / "deployments" / "storage"
BUCKET_OF_POLICY = "eigenshift"
ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""What AWS asks for each call."""
UNSEEN = {"s3:AbortMultipartUpload"}
"""Allowed for when an upload fails half-way, which these runs do not."""

Call = tuple[str, str]
"""An action and the resource it is asked for."""


@pytest.mark.s3
@pytest.mark.engine
@pytest.mark.slow
def test_the_policies_fit_the_calls(
    s3_store_url: str, prefect_server: None, load_small: Callable[..., RefreshSettings]
) -> None:
    """Every call is allowed, every permission is used, and the auditor cannot write."""
    from flows.refresh import run_refresh

    bucket = s3_store_url.split("/")[2]
    worker, auditor = _read_policy("worker"), _read_policy("auditor")
    with _recording(bucket) as calls:
        run_refresh(load_small(f"store={s3_store_url}"))
    assert _list_refused(worker, calls) == []
    assert _list_unused(worker, calls) <= UNSEEN
    assert [action for action, _ in _list_refused(auditor, calls) if action == "s3:PutObject"]
    with _recording(bucket) as calls:
        with open_audit(s3_store_url) as session:
            assert session.query("select count(*) as n from evaluations").num_rows == 1
        assert not verify_store(s3_store_url).problems
    assert _list_refused(auditor, calls) == []
    assert _list_unused(auditor, calls) == set()


def _read_policy(name: str) -> list[dict[str, Any]]:
    document = json.loads((FOLDER / f"{name}-policy.json").read_text())
    assert {statement["Effect"] for statement in document["Statement"]} == {"Allow"}
    statements: list[dict[str, Any]] = document["Statement"]
    return statements


@contextmanager
def _recording(bucket: str) -> Iterator[list[Call]]:
    """Record every call to S3 as the actions that AWS would ask for, in the policies' bucket."""
    from aiobotocore.client import AioBaseClient

    calls: list[Call] = []
    make_call = AioBaseClient._make_api_call

    async def recording(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        assert api_params["Bucket"] == bucket
        key = api_params.get("Key")
        resource = f"arn:aws:s3:::{BUCKET_OF_POLICY}" + (f"/{key}" if key else "")
        if operation_name == "DeleteObjects":
            for item in api_params["Delete"]["Objects"]:
                calls.append(("s3:DeleteObject", f"{resource}/{item['Key']}"))
        else:
            calls.append((ACTIONS[operation_name], resource))
        return await make_call(self, operation_name, api_params)

    AioBaseClient._make_api_call = recording
    try:
        yield calls
    finally:
        AioBaseClient._make_api_call = make_call


def _list_refused(policy: list[dict[str, Any]], calls: list[Call]) -> list[Call]:
    return sorted(
        {call for call in calls if not any(_allows(statement, call) for statement in policy)}
    )


def _list_unused(policy: list[dict[str, Any]], calls: list[Call]) -> set[str]:
    """Actions of the policy that no call needed."""
    return {
        action
        for statement in policy
        for action in statement["Action"]
        if not any(call[0] == action and _allows(statement, call) for call in calls)
    }


def _allows(statement: dict[str, Any], call: Call) -> bool:
    action, resource = call
    return action in statement["Action"] and any(
        fnmatchcase(resource, pattern) for pattern in statement["Resource"]
    )
