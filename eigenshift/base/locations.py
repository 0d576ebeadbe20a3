"""Paths and URLs as people write them: their options, and the secrets they must not carry.

Strings only; opening what they name is `filesystems.py`.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from eigenshift.base.errors import SettingsError

S3_SCHEMES = frozenset({"s3", "s3a"})
URL_OPTIONS = ("endpoint_url", "addressing_style", "region_name")
QUERY = re.compile(r"\w+=[^&]*(&\w+=[^&]*)*")
SECRET_NAME = re.compile(
    r"(signature|credentials?|token|secret|password|(^|[^a-z])(sig|key)|(api|access)key)$",
    re.IGNORECASE,
)
"""Names of parameters that carry credentials, by their last word: X-Goog-Signature, api_key."""


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
    """Whether a URL, or one among its options, carries credentials.

    These are a user's password, any user of http(s), where a token alone may stand, and parameters
    whose name says so.
    """
    if "://" not in url:
        return False
    return any(_has_user(text) or _has_secret_parameter(text) for text in (url, unquote(url)))


def _has_user(text: str) -> bool:
    for scheme, authority in re.findall(r"(\w+)://([^/?#]*)", text):
        user, at, _ = authority.rpartition("@")
        if at and (":" in user or scheme.lower() in ("http", "https")):
            return True
    return False


def _has_secret_parameter(text: str) -> bool:
    return any(SECRET_NAME.search(name) for name in re.findall(r"[?&;#]([^?&;#=/]+)=", text))
