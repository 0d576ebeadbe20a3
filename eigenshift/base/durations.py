"""Times of day and durations as a person reads them; records keep ISO times and seconds."""

from __future__ import annotations

from datetime import datetime, timezone

MINUTE, HOUR, DAY = 60, 3600, 86_400


def format_duration(seconds: float) -> str:
    """`0.4s`, `12s`, `3m 42s`, `2h 05m`, `1d 04h`: at most seven letters up to a thousand days.

    Args:
        seconds: Not below 0.
    """
    if seconds < 10 and round(seconds, 1) != round(seconds):
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole}s"
    if whole < HOUR:
        return f"{whole // MINUTE}m {whole % MINUTE:02}s"
    if whole < DAY:
        return f"{whole // HOUR}h {whole % HOUR // MINUTE:02}m"
    return f"{whole // DAY}d {whole % DAY // HOUR:02}h"


def format_moment(moment: datetime | str) -> str:
    """`27 Nov 20:12`, in UTC as the ids of runs and releases, which have the year and the rest.

    Args:
        moment: ISO text, or a time; without a zone it is taken as UTC.
    """
    time = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time
    return f"{time.astimezone(timezone.utc):%d %b %H:%M}"
