"""A real S3-compatible server for tests, started from `.ci/s3_server`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.prefect_server import find_free_ports

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "s3_server"
NOT_INSTALLED = "the S3 server is not installed: .ci/s3_server install"
REGION = "us-east-1"
ACCESS_KEY = "test:tester"
SECRET_KEY = "testing-only"  # noqa: S105 - throw-away, of a server on loopback
READER_KEY, READER_SECRET = "test:reader", "reading-only"


@dataclass(frozen=True)
class S3Server:
    """Where it answers and who may write there."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The usual variables, for this process or another."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        self._connect().mkdir(name)

    def _connect(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            key=ACCESS_KEY,
            secret=SECRET_KEY,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": REGION},
        )

    def open_to_reader(self, bucket: str) -> None:
        """Let users without rights of their own list and read a bucket, not write to it."""
        self._connect().chmod(bucket, "public-read")


def is_installed() -> bool:
    """Whether the server can be started here."""
    return (ROOT / ".venv-s3" / ".installed").exists()


@contextmanager
def s3_server_process(folder: Path) -> Iterator[S3Server]:
    """Start a server with its data in a folder, and stop it."""
    for _ in range(3):
        port = find_free_ports(4)
        words = [sys.executable, str(SCRIPT), "start", str(folder), str(port)]
        found = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
        if found.returncode == 0:
            break
    else:
        raise RuntimeError(found.stderr)
    try:
        yield S3Server(found.stdout.strip())
    finally:
        subprocess.run([sys.executable, str(SCRIPT), "stop", str(folder)], check=True)
