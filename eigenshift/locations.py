"""Paths and URLs as people write them: their options, and the secrets they must not carry.

Strings only; opening what they name is `filesystems.py`.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from eigenshift.errors import SettingsError

S3_SCHEMES = frozenset({"s3", "s3a"})
URL_OPTIONS = ("endpoint_url", "addressing_style", "region_name")
QUERY = re.compile(r"\w+=[^&]*(&\w+=[^&]*)*")
SECRET_QUERY = re.compile(
    r"[?&](x-amz-(signature|credential|security-token)|sig(nature)?|token|key|secret|password)=",
    re.IGNORECASE,
)


def split_options(url: str) -> tuple[str, dict[str, str]]:
    """Split an S3 URL from the options after its last `?`; a glob's `?` is no option.

    Raises:
        SettingsError: An option is unknown.
    """
    plain, _, query = url.rpartition("?")
    if urlsplit(plain).scheme not in S3_SCHEMES or not QUERY.fullmatch(query):
        return url, {}
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(URL_OPTIONS))
    if unknown:
        raise SettingsError(
            f"{plain}: expected only the options {', '.join(URL_OPTIONS)} after the `?`, found "
            f"{', '.join(unknown)}. Leave them out; credentials come from the environment."
        )
    return plain, options


def has_secret(url: str) -> bool:
    """Whether a URL carries credentials: a user's password, or a signature in its query."""
    if "://" not in url:
        return False
    user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    return (bool(at) and ":" in user) or SECRET_QUERY.search(url) is not None
