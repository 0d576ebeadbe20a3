"""Filesystems behind URLs: which one, how it is asked, what its faults mean.

The only place that knows clients of object stores. A URL says where; credentials come from the
environment in each client's usual way (AWS_ACCESS_KEY_ID and so on) and are refused inside a URL,
which ends up in records. What is not secret and has no variable of its own may follow the URL:

    s3://bucket/prefix?endpoint_url=http://127.0.0.1:9000&addressing_style=path&region_name=eu-west-1

Faults that pass (timeouts, resets, 429, 5xx, SlowDown) are tried again with exponential backoff and
full jitter; all others, and those that do not pass, become a `StorageError`. Clients' own retries
are switched off where they can be, so that attempts do not multiply. What is stored under which
path belongs to `storage.py`; files that users name are read by `source_files.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import tenacity
from fsspec.implementations.local import LocalFileSystem

from eigenshift.base.errors import SettingsError, StorageError
from eigenshift.base.locations import S3_SCHEMES, has_secret, split_options

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
SECRET_VARIABLES = re.compile(r"(SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|CREDENTIAL|_SAS)")
MIN_SECRET_CHARACTERS = 6
SCHEME = re.compile(r"[A-Za-z][\w.+-]*(::[A-Za-z][\w.+-]*)*")
HIDDEN_SECRET = "[hidden]"  # noqa: S105 - what a secret is replaced by

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PASSING_NUMBERS = frozenset(
    {
        errno.EIO,  # s3fs: any answer it has no number for
        getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: InternalError; Linux only
        errno.EAGAIN,
        errno.EBUSY,  # s3fs: SlowDown
        errno.EINTR,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
    }
)
PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
PASSING_CODES = frozenset(
    {"SlowDown", "Throttling", "RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch"}
)
PASSING_NAMES = frozenset(
    {
        # botocore and aiohttp: the connection, not the request, was the problem
        "HTTPClientError",
        "ConnectionError",
        "ClientConnectionError",
        "ClientPayloadError",
        "IncompleteReadError",
        "IncompleteRead",
        "ResponseStreamingError",
        "ServiceUnavailable",
    }
)
MISSING_NAMES = frozenset({"ResourceNotFoundError"})
"""Azure's: of an object, or of the container it was to be written to."""
REFUSING_STATUSES = frozenset({401, 403})
REFUSING_NAMES = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "DefaultCredentialsError",
    }
)


EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Object stores by their URLs' beginnings, and the extra of this package with their client."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon a request is tried again.

    Attributes:
        attempts: Tries in all.
        first_wait_seconds: Upper bound of the first wait; doubles with each try. The wait itself
            is drawn between 0 and the bound, so that many tasks do not return together.
        max_wait_seconds: Upper bound of any wait.
    """

    attempts: int = 7
    first_wait_seconds: float = 0.2
    max_wait_seconds: float = 15.0

    def call(self, place: str, verb: str, operation: Callable[[], T], *, seen: Any = None) -> T:
        """Do something to storage until it works or cannot work.

        Args:
            place: URL, for the log and the error.
            verb: What is done, e.g. "write".
            operation: Safe to repeat.
            seen: Called with each fault that is tried again.

        Raises:
            StorageError: It was refused, or failed at the last attempt.
            FileNotFoundError: There is no such object; for the caller to explain.
        """

        def report(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            if seen is not None:
                seen(error)
            logger.warning(
                "storage fault, trying again: place=%s action=%s attempt=%d/%d fault=%s",
                place,
                verb,
                state.attempt_number,
                self.attempts,
                type(error).__name__,
            )

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(self.first_wait_seconds, self.max_wait_seconds),
            retry=tenacity.retry_if_exception(is_passing),
            before_sleep=report,
            reraise=True,
        )
        with explain_faults(place, verb, self.attempts):
            return retrying(operation)


RETRIES = RetryPolicy()


def open_filesystem(url: str) -> tuple[Any, str]:
    """Find the filesystem of a URL and the path inside it.

    Raises:
        SettingsError: No filesystem is installed for it, it carries a secret or an unknown option.
    """
    if has_secret(url):
        raise SettingsError(
            "a URL in the settings: expected no credentials in it, found some (the URL is not "
            "shown). It would be written into the store's records. Give credentials by the "
            "environment (AWS_ACCESS_KEY_ID and so on) or by a Prefect block."
        )
    plain, options = split_options(url)
    _require_known(plain)
    try:
        filesystem, path = fsspec.core.url_to_fs(plain, **_configure_client(plain, options))
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"{url}: expected a path or a URL that fsspec can open, found: {redact(str(error))}. "
            f"{_suggest_extra(plain)}"
        ) from error
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1
    return filesystem, path


def _require_known(url: str) -> None:
    """Refuse a URL whose beginning nobody knows, or that names no bucket.

    Raises:
        SettingsError: It is such a URL.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or not SCHEME.fullmatch(scheme):
        return
    known = {*EXTRAS, *fsspec.available_protocols(), *fsspec.registry}
    if unknown := [name for name in scheme.split("::") if name not in known]:
        raise SettingsError(
            f"{url}: expected a path or a URL of a kind that is known, found {unknown[0]}://. "
            "Write a folder, or a URL that begins with s3://, gs:// or az://."
        )
    store = scheme.rpartition("::")[2]
    if store in EXTRAS and (not rest or rest.startswith("/")):
        what = "container" if EXTRAS[store] == "azure" else "bucket"
        raise SettingsError(
            f"{url}: expected the name of a {what} after {store}://, found none. Write "
            f"{store}://{what.upper()}/{rest.strip('/') or 'FOLDER'}."
        )


def _suggest_extra(url: str) -> str:
    """What to install for a URL whose client is not here."""
    extra = EXTRAS.get(url.partition("://")[0].rpartition("::")[2])
    if extra is None:
        return "Install what the message names, or choose another place."
    return f"Install its client: pip install 'eigenshift[{extra}]'."


def read_whole(filesystem: Any, path: str) -> bytes:
    """Return a small file's bytes; s3fs would ask for the size first, to fetch in parts."""
    is_s3 = not S3_SCHEMES.isdisjoint(_list_protocols(filesystem))
    return bytes(filesystem.cat_file(path, **({"max_concurrency": 1} if is_s3 else {})))


def _list_protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def is_local_filesystem(filesystem: Any) -> bool:
    """Whether paths of this filesystem are paths of this machine."""
    return isinstance(filesystem, LocalFileSystem)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may work a moment later."""
    return any(_is_passing(found) for found in _list_causes(error)) and not is_refusal(error)


def is_refusal(error: BaseException) -> bool:
    """Whether the request was refused for want of credentials or rights."""
    return any(
        isinstance(found, PermissionError)
        or _names(found) & REFUSING_NAMES
        or (_is_from_client(found) and _read_status(found) in REFUSING_STATUSES)
        for found in _list_causes(error)
    )


def redact(message: str) -> str:
    """Replace the value of every secret in the environment by a mark."""
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET_CHARACTERS and SECRET_VARIABLES.search(name.upper()):
            message = message.replace(value, HIDDEN_SECRET)
    return message


def _hide_secrets(error: BaseException) -> BaseException:
    """What to name as a cause: the error, or a stand-in where a traceback of it would show one."""
    shown: BaseException | None = error
    while shown is not None:
        if redact(str(shown)) != str(shown):
            return RuntimeError(f"{type(error).__name__}: {redact(str(error))}")
        shown = shown.__cause__ or shown.__context__
    return error


@contextmanager
def explain_local_write(place: str) -> Iterator[None]:
    """As `explain_faults`, of writing to a folder: what is missing there is the folder.

    Raises:
        StorageError: It could not be written, or a folder for it not be made.
    """
    try:
        with explain_faults(place, "write"):
            yield
    except FileNotFoundError as error:
        raise StorageError(
            f"{place}: expected to write it, found that no folder can be made there "
            f"({error.strerror or type(error).__name__}). Choose another folder."
        ) from error


@contextmanager
def explain_faults(place: str, verb: str, attempts: int = 1) -> Iterator[None]:
    """Turn whatever a filesystem raises into one kind of error that says what to do.

    Raises:
        StorageError: Anything but a missing object went wrong.
        FileNotFoundError: The object is missing.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if _is_from_client(error) and _names(error) & MISSING_NAMES:
            raise FileNotFoundError(errno.ENOENT, type(error).__name__, place) from error
        cause = _hide_secrets(error)
        # Azure's messages go on with the answer's headers and body.
        message = next(iter(redact(str(error)).splitlines()), "")
        found = f"{type(error).__name__}: {message}".rstrip(": .")
        if is_refusal(error):
            remedy = (
                "Check the owner and permissions of the folder"
                if _is_local_place(place)
                else "The credentials are missing, wrong or expired, or lack this right. Renew "
                "them (environment or Prefect block)"
            )
            raise StorageError(
                f"{place}: expected to be allowed to {verb} it, found {found}. {remedy} and start "
                "the same command again; finished work is kept."
            ) from cause
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise _describe_full_disk(place, error, in_scratch=False) from cause
        if is_passing(error):
            raise StorageError(
                f"{place}: expected to {verb} it, found {found} at each of {attempts} attempts. "
                "The storage is down or overloaded, or its address is wrong. Start the same "
                "command again when it answers; finished work is kept."
            ) from cause
        if isinstance(error, OSError) or _is_from_client(error):
            remedy = (
                "Check the folder, and that its disk can be read and written"
                if _is_local_place(place)
                else "Check the URL and, for an object store, its endpoint and bucket"
            )
            raise StorageError(
                f"{place}: expected to {verb} it, found {found}. {remedy}."
            ) from cause
        raise


def _is_local_place(place: str) -> bool:
    return place.startswith("file://") or "://" not in place


@contextmanager
def logging_faults(what: str) -> Iterator[None]:
    """Log a storage error instead of raising it, where a graver error is on its way already."""
    try:
        yield
    except StorageError as error:
        logger.warning("%s: %s", what, error)


@contextmanager
def explain_full_disk(folder: Path, *, in_scratch: bool) -> Iterator[None]:
    """Explain a full disk met by code that writes local files with its own libraries.

    Args:
        folder: Where it writes.
        in_scratch: Whether that is this process's scratch folder, not a local store.

    Raises:
        StorageError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise _describe_full_disk(str(folder), error, in_scratch=in_scratch) from error
        raise


def _describe_full_disk(place: str, error: OSError, *, in_scratch: bool) -> StorageError:
    remedy = "(`eigenshift gc` removes what no run needs) or choose another --store"
    if in_scratch:
        remedy = "or set TMPDIR to a folder with more"
    return StorageError(
        f"{place}: expected room to write, found {type(error).__name__}: {error.strerror or error}."
        f" The disk or the quota is full. Free some space {remedy}; finished work is kept."
    )


def _configure_client(url: str, options: dict[str, str]) -> dict[str, Any]:
    """Constructor arguments of the filesystem: addresses, time limits, no retries of its own."""
    if urlsplit(url).scheme not in S3_SCHEMES:
        return {}
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": READ_TIMEOUT_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    if "addressing_style" in options:
        config["s3"] = {"addressing_style": options["addressing_style"]}
    arguments: dict[str, Any] = {"config_kwargs": config, "use_listings_cache": False}
    if "endpoint_url" in options:
        arguments["endpoint_url"] = options["endpoint_url"]
    if "region_name" in options:
        arguments["client_kwargs"] = {"region_name": options["region_name"]}
    return arguments


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in PASSING_NUMBERS:
        return True
    if _read_status(error) in PASSING_STATUSES or _read_code(error) in PASSING_CODES:
        return True
    return _is_from_client(error) and bool(_names(error) & PASSING_NAMES)


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _is_from_client(error: BaseException) -> bool:
    """Whether an object store's client raised it; the clients are optional, so not imported."""
    package = type(error).__module__.partition(".")[0]
    return package in {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "http"}


def _read_status(error: BaseException) -> int | None:
    """HTTP status of a client's error: botocore's response, gcsfs's code, azure's status_code."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "code", None) or getattr(error, "status_code", None)
    return int(status) if isinstance(status, int) or str(status).isdigit() else None


def _read_code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
