"""Durations and times as a person reads them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from eigenshift.base.durations import format_duration, format_moment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (12.4, "12s"),
        (59.6, "1m 00s"),
        (222, "3m 42s"),
        (3599.7, "1h 00m"),
        (7500, "2h 05m"),
        (86_400 + 4 * 3600, "1d 04h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    """Rounded before it is divided, so that no `60s` appears."""
    assert format_duration(seconds) == text
    assert len(text) <= 7


def test_a_moment_is_told_in_utc() -> None:
    """From ISO text, from a time of another zone, from one without."""
    assert format_moment("2026-11-27T20:12:39.485+00:00") == "27 Nov 20:12"
    assert format_moment("2026-11-27 20:12") == "27 Nov 20:12"
    east = timezone(timedelta(hours=8))
    assert format_moment(datetime(2026, 11, 28, 4, 12, tzinfo=east)) == "27 Nov 20:12"
