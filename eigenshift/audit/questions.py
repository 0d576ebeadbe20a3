"""Saved questions: SQL over the audit views, by name.

Each is a file in `sql/` whose first line says what it answers. What it is about stands in
braces: `{run}`, `{release}`, and `{before}` and `{after}`, two runs to compare. Text columns that a
saved question names stay hidden unless text is asked for: the reader did not choose them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from eigenshift.audit.statements import quote
from eigenshift.base.errors import SettingsError
from eigenshift.base.suggestions import suggest
from eigenshift.ledger.releases import Release, list_releases
from eigenshift.ledger.runs import choose_run
from eigenshift.store.storage import Store

DESCRIBED_COMMANDS = ("refresh", "detect")
"""Commands whose latest run is meant where none is named."""
FOLDER = resources.files("eigenshift.audit").joinpath("sql")
_SUBJECT = re.compile(r"\{(run|release|before|after)\}")


@dataclass(frozen=True)
class Subjects:
    """What a question is asked about; what is not given is the latest.

    Attributes:
        run: A run's id.
        against: The run to compare it with; without one, runs of releases are compared.
        release: A version.
        since: The version to compare it with; by default the one before it.
    """

    run: str | None = None
    against: str | None = None
    release: str | None = None
    since: str | None = None


@dataclass(frozen=True)
class Question:
    """One saved question.

    Attributes:
        name: Of its file.
        template: Its SQL, with subjects in braces.
    """

    name: str
    template: str

    @property
    def answers(self) -> str:
        """What it answers, in one line."""
        return self.template.partition("\n")[0].removeprefix("--").strip()

    @cached_property
    def subjects(self) -> frozenset[str]:
        """What it is about: run, release, before, after."""
        return frozenset(_SUBJECT.findall(self.template))

    def fill(self, values: Mapping[str, str]) -> str:
        """Its SQL about these subjects."""
        return _SUBJECT.sub(lambda found: quote(values[found[1]]), self.template)

    def ask_about(self, store: Store, subjects: Subjects) -> str:
        """Its SQL about the subjects given, or the latest of the store.

        Raises:
            SettingsError: There is no such run or release.
        """
        values = {}
        if "run" in self.subjects:
            values["run"] = choose_run(store, subjects.run, DESCRIBED_COMMANDS).run_id
        if "release" in self.subjects:
            values["release"] = _find_release(store, subjects.release).version
        if "before" in self.subjects:
            values["before"], values["after"] = _choose_pair(store, subjects)
        return self.fill(values)


def list_questions() -> dict[str, Question]:
    """Every saved question by name, sorted."""
    questions = [
        Question(item.name.removesuffix(".sql"), item.read_text("utf-8"))
        for item in FOLDER.iterdir()
        if item.name.endswith(".sql")
    ]
    return {question.name: question for question in sorted(questions, key=lambda q: q.name)}


def find_question(name: str) -> Question:
    """One saved question.

    Raises:
        SettingsError: There is none of this name.
    """
    questions = list_questions()
    if name not in questions:
        raise SettingsError(
            f"--ask: expected a saved question, found {name!r}.{suggest(name, questions)} "
            "`eigenshift audit --list` lists them."
        )
    return questions[name]


def fill_question(name: str, run_id: str) -> str:
    """The SQL of a question about one run."""
    return find_question(name).fill({"run": run_id})


def _choose_pair(store: Store, subjects: Subjects) -> tuple[str, str]:
    """Runs to compare, the earlier first: those given, or those of two releases."""
    if subjects.against is not None:
        after = choose_run(store, subjects.run, DESCRIBED_COMMANDS).run_id
        return choose_run(store, subjects.against).run_id, after
    release = _find_release(store, subjects.release)
    since = _find_release(store, subjects.since or release.previous or release.version)
    return since.run_id, release.run_id


def _find_release(store: Store, version: str | None) -> Release:
    releases = list_releases(store)
    if version is None and releases:
        return releases[-1]
    for release in releases:
        if release.version == version:
            return release
    known = ", ".join(release.version for release in releases[-3:]) or "none"
    raise SettingsError(
        f"{store.root}: expected release {version or 'of a patch'}, found no such release (latest: "
        f"{known}).{suggest(version or '', [release.version for release in releases])} Choose one "
        "with --release or --since; see `eigenshift releases`."
    )
