"""What `doctor` says of one thing it looked at: well, to be minded, or wrong, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    """How a thing stands.

    `warning`: a run may end well, but slower, only with the network, or nobody knows; `no`: it
    cannot.
    """

    ok = "ok"
    warning = "warning"
    no = "no"


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What.
        state: How it stands.
        detail: What was found.
        remedy: What to do; empty where nothing is to be done, or where `detail` is an error's
            message, which says it itself.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    @classmethod
    def fine(cls, name: str, detail: str) -> Finding:
        """Nothing to be done."""
        return cls(name, State.ok, detail)

    @classmethod
    def warn(cls, name: str, detail: str, remedy: str) -> Finding:
        """To be minded."""
        return cls(name, State.warning, detail, remedy)

    @classmethod
    def fail(cls, name: str, detail: str, remedy: str = "") -> Finding:
        """A run would fail of it."""
        return cls(name, State.no, detail, remedy)

    @property
    def is_fine(self) -> bool:
        """Whether a run does not fail of it, as far as is known."""
        return self.state is not State.no
