"""Leave schedules as they were switched; called by `deployments/deploy` before and after deploying.

    python deployments/schedules.py read > FILE    which schedules are on and off
    python deployments/schedules.py restore FILE   switch those that changed back

`prefect deploy` sets every schedule to what `prefect.yaml` says, which is off, also one that was
switched on since.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

FILE = Path(__file__).with_name("prefect.yaml")


async def list_schedules(client: PrefectClient) -> list[Any]:
    """The schedules of the deployments named in the file, as far as they are on the server."""
    names = [item["name"] for item in yaml.safe_load(FILE.read_text("utf-8"))["deployments"]]
    found = await client.read_deployments(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names))
    )
    return [schedule for deployment in found for schedule in deployment.schedules]


async def read() -> dict[str, bool]:
    """Whether each is on, by deployment and slug."""
    async with get_client() as client:
        return {_name(schedule): schedule.active for schedule in await list_schedules(client)}


async def restore(states: dict[str, bool]) -> None:
    """Switch each as it was; one that is new stays as it is."""
    async with get_client() as client:
        for schedule in await list_schedules(client):
            is_on = states.get(_name(schedule), schedule.active)
            if is_on != schedule.active:
                await client.update_deployment_schedule(
                    schedule.deployment_id, schedule.id, active=is_on
                )
                print(f"schedule {schedule.slug}: left {'on' if is_on else 'off'}")  # noqa: T201


def _name(schedule: Any) -> str:
    return f"{schedule.deployment_id}/{schedule.slug}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read"]:
            print(json.dumps(asyncio.run(read())))  # noqa: T201
        case ["restore", file]:
            asyncio.run(restore(json.loads(Path(file).read_text("utf-8"))))
        case _:
            sys.exit(__doc__)
