#!/usr/bin/env bash
# prefect 3.8.8 on Python 3.11: a cron schedule in a zone with summer time. On the day the clocks go forward,
# `30 2 * * *` in Europe/Berlin runs at 01:30, an hour early, rather than at 03:30 or not at all; when they go back,
# every-ten-minutes pauses for an hour (that Prefect documents). In UTC neither happens.
# Seen:
#   spring, 30 2 * * * in Europe/Berlin: 27T02:30+01:00, 28T01:30+01:00, 29T02:30+02:00
#   autumn, */10 * * * * in Europe/Berlin, UTC: 00:40, 00:50, 02:00, 02:10
#   spring, 30 2 * * * in Etc/UTC: 27T02:30+00:00, 28T02:30+00:00, 29T02:30+00:00
# Our guard: the schedules of deployments/prefect.yaml are in UTC, docs/runbook.md says why, and
# tests/test_deployments.py asks Prefect for the dates around both changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prefect==3.8.8
cd "$folder"
HOME="$folder" DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false "$folder/venv/bin/python" - <<'PY'
import asyncio
from datetime import timezone

import pendulum
from prefect.server.schemas.schedules import CronSchedule

BERLIN = "Europe/Berlin"


def list_dates(cron, zone, n, *start):
    start = pendulum.datetime(*start, tz="UTC")
    return asyncio.run(CronSchedule(cron=cron, timezone=zone).get_dates(n=n, start=start))


def show(dates):
    return ", ".join(f"{date:%dT%H:%M}{date.isoformat()[-6:]}" for date in dates)


spring = show(list_dates("30 2 * * *", BERLIN, 3, 2027, 3, 26, 23))
autumn = ", ".join(
    f"{date.astimezone(timezone.utc):%H:%M}"
    for date in list_dates("*/10 * * * *", BERLIN, 4, 2026, 10, 25, 0, 40)
)
steady = show(list_dates("30 2 * * *", "Etc/UTC", 3, 2027, 3, 27))
print(f"spring, 30 2 * * * in {BERLIN}: {spring}")
print(f"autumn, */10 * * * * in {BERLIN}, UTC: {autumn}")
print(f"spring, 30 2 * * * in Etc/UTC: {steady}")
assert spring == "27T02:30+01:00, 28T01:30+01:00, 29T02:30+02:00", spring
assert autumn == "00:40, 00:50, 02:00, 02:10", autumn
assert steady == "27T02:30+00:00, 28T02:30+00:00, 29T02:30+00:00", steady
PY
