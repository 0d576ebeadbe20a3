"""Put the automations of `automations.yaml` on the Prefect server; called by `deployments/deploy`.

An automation of the same name is updated, so running it again changes nothing. A notification block
named by EIGENSHIFT_NOTIFY_BLOCK (its id) is told of held, failed and crashed runs; without the
variable, one that is told already stays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore

FILE = Path(__file__).with_name("automations.yaml")
NOTIFIED = "eigenshift-held-or-failed"
SUBJECT = "EigenShift: {{ flow_run.name }} is {{ flow_run.state.name }}"
BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"


def read_automations(notification_block: str | None) -> list[AutomationCore]:
    """The automations of the file, with the notification if there is a block for it."""
    documents = yaml.safe_load(FILE.read_text(encoding="utf-8"))["automations"]
    found = [AutomationCore.model_validate(document) for document in documents]
    if notification_block:
        for automation in found:
            if automation.name == NOTIFIED:
                automation.actions = [
                    SendNotification(
                        block_document_id=UUID(notification_block), subject=SUBJECT, body=BODY
                    )
                ]
    return found


def keep_notifications(automation: AutomationCore, existing: AutomationCore) -> None:
    """Let an automation that would notify nobody go on notifying whom it notifies now."""
    notifications = [action for action in existing.actions if is_notification(action)]
    if notifications and not any(map(is_notification, automation.actions)):
        automation.actions = notifications


def is_notification(action: Any) -> bool:
    """Whether an action tells somebody."""
    return isinstance(action, SendNotification)


async def put_automations(automations: list[AutomationCore]) -> None:
    """Create or update each by name."""
    async with get_client() as client:
        for automation in automations:
            existing: list[Any] = await client.read_automations_by_name(automation.name)
            if existing:
                keep_notifications(automation, existing[0])
                await client.update_automation(existing[0].id, automation)
            else:
                await client.create_automation(automation)
            print(f"automation {automation.name}: {'updated' if existing else 'created'}")  # noqa: T201


if __name__ == "__main__":
    import asyncio

    asyncio.run(put_automations(read_automations(os.environ.get("EIGENSHIFT_NOTIFY_BLOCK"))))
