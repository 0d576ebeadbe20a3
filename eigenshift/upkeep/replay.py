"""Hold a repeated run against its reproduction file: first what it reads, then what it finds.

Reads a `Reproduction`, the files that the settings name now, and the rows of the repeated
evaluation; writes nothing. The run itself is `flows/reproduce.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

import eigenshift
from eigenshift.base.errors import DatasetError, ModelError, ScorerError, SettingsError
from eigenshift.datasets.reading import digest_source
from eigenshift.model.files import identify_model
from eigenshift.settings import RefreshSettings, SourceFormat, SourceSettings
from eigenshift.store.manifests import describe_versions
from eigenshift.store.source_files import digest_file, list_files
from eigenshift.toxicity.scorers.identity import identify_scorer
from eigenshift.toxicity.stages import Classifier
from eigenshift.upkeep.reproduction import Metric, Reproduction, digest_code, name_file

COMPARED = ("value", "low", "high")


class Difference(BaseModel):
    """One number that is not as recorded.

    Attributes:
        number: "value", "low" or "high" of the metric.
        recorded: None: it could not be computed then, or was not measured.
        found: The same of now.
        difference: Found minus recorded, None where one of them is.
        is_beyond: It is larger than the tolerance.
    """

    arm: str
    metric: str
    slice: str
    number: str
    recorded: float | None
    found: float | None
    difference: float | None
    is_beyond: bool


class Replay(BaseModel):
    """What a repeated run found.

    Attributes:
        run_id: The repeated run, in `store`.
        recorded_run_id: The one it repeats.
        n_compared: Numbers held against each other.
        differences: Those that are not equal, beyond the tolerance or not.
        notes: What else differs and was not refused: code, libraries, settings.
    """

    run_id: str
    recorded_run_id: str
    store: str
    tolerance: float
    n_compared: int
    differences: list[Difference]
    notes: list[str]

    @property
    def is_equal(self) -> bool:
        """Whether every number is within the tolerance."""
        return not any(item.is_beyond for item in self.differences)

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return ["", "arm", "metric", "slice", "recorded", "found", "difference"]

    @property
    def rows(self) -> list[list[str]]:
        """One row per number that differs, those beyond the tolerance first."""
        return [
            [
                "beyond" if item.is_beyond else "within",
                item.arm,
                item.metric if item.number == "value" else f"{item.metric} ({item.number})",
                item.slice,
                _show(item.recorded),
                _show(item.found),
                _show(item.difference, "+.3g"),
            ]
            for item in sorted(self.differences, key=lambda item: not item.is_beyond)
        ]

    @property
    def summary(self) -> str:
        """One line for people."""
        n_beyond = sum(item.is_beyond for item in self.differences)
        what = f"{self.n_compared} numbers of run {self.recorded_run_id}"
        if n_beyond:
            return f"{what}: {n_beyond} differ by more than {self.tolerance:g}."
        if self.differences:
            return f"{what}: all within {self.tolerance:g}, {len(self.differences)} not equal."
        return f"{what}: all equal."

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.model_dump(mode="json"), "is_equal": self.is_equal, "summary": self.summary}


def check_inputs(reproduction: Reproduction, settings: RefreshSettings) -> None:
    """Refuse to repeat a run on other data, another model or another scorer.

    Args:
        reproduction: What the run read.
        settings: Where these are now.

    Raises:
        SettingsError: Every file that differs, is missing or was not there, by name.
    """
    problems = [
        *_check_model(reproduction, settings),
        *_check_data(reproduction, settings),
        *_check_scorers(reproduction, settings),
    ]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise SettingsError(
            f"run {reproduction.run_id}: expected what it read, found {len(problems)} "
            f"difference(s):\n{lines}\nNumbers from other files would say nothing. Restore these, "
            "or say where they are with --set, e.g. --set sources.0.uri=PATH."
        )


def _check_model(reproduction: Reproduction, settings: RefreshSettings) -> Iterator[str]:
    expected = reproduction.model
    try:
        found = identify_model(settings.model)
    except ModelError as error:
        yield f"model: {error}"
        return
    if found.digest == expected.digest:
        return
    if not expected.files:
        yield f"model {settings.model.id}: {_differ(expected.digest, found.digest)}"
    for name in sorted({*expected.files, *found.files} if expected.files else ()):
        before, now = expected.files.get(name), found.files.get(name)
        if before != now:
            yield f"model, {name}: {_differ(before, now)}"


def _check_data(reproduction: Reproduction, settings: RefreshSettings) -> Iterator[str]:
    expected: dict[str, Counter[tuple[str, str]]] = {}
    for file in reproduction.data:
        expected.setdefault(file.dataset, Counter())[file.file, file.sha256] += 1
    for source in settings.sources:
        recorded = expected.get(source.name)
        if recorded is None:
            continue  # a source that no stage of the run read
        try:
            found = Counter(_list_digests(source))
        except DatasetError as error:
            yield f"source {source.name}: {error}"
            continue
        before, now = (dict((recorded - found).keys()), dict((found - recorded).keys()))
        for name in sorted({*before, *now}):
            yield f"source {source.name}, {name}: {_differ(before.get(name), now.get(name))}"


def _list_digests(source: SourceSettings) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each file of a source as it is now."""
    if source.format is SourceFormat.huggingface:
        yield source.name, digest_source(source)
        return
    files = list_files(source.uri)
    files += [] if source.labels_uri is None else list_files(source.labels_uri)
    for file in files:
        yield name_file(file.uri), digest_file(file.uri)


def _check_scorers(reproduction: Reproduction, settings: RefreshSettings) -> Iterator[str]:
    now = {scorer.name: scorer for scorer in (settings.scorer, *settings.further_scorers)}
    for expected in reproduction.scorers:
        scorer = now.get(expected.name)
        if scorer is None:
            yield f"scorer {expected.name}: expected among the settings, found none of this name"
            continue
        try:
            found = identify_scorer(Classifier.of(scorer).settings)
        except ScorerError as error:
            yield f"scorer {expected.name}: {error}"
            continue
        if found != expected.digest:
            yield f"scorer {expected.name}: {_differ(expected.digest, found)}"


def _differ(before: str | None, now: str | None) -> str:
    if now is None:
        return "expected this file, found none of its name"
    if before is None:
        return "expected no such file, found one"
    return f"expected sha256 {before[:12]}, found {now[:12]}"


def list_notes(reproduction: Reproduction, overrides: Sequence[str]) -> list[str]:
    """What differs from the recorded run without being refused: it may explain other numbers."""
    notes = [f"changed here: {override}" for override in overrides]
    code = reproduction.code
    if code.version != eigenshift.__version__:
        notes.append(f"eigenshift {code.version} then, {eigenshift.__version__} now")
    elif code.digest not in (None, digest_code()):
        notes.append(f"the code of eigenshift {code.version} is not that of then")
    now = describe_versions()
    notes += [
        f"{name} {version} then, {now.get(name, 'not installed')} now"
        for name, version in reproduction.versions.items()
        if name != "eigenshift" and now.get(name) != version
    ]
    return notes


def compare_metrics(
    recorded: Sequence[Metric], found: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[Difference], int]:
    """Hold every number of two evaluations against each other.

    Args:
        recorded: Rows of then.
        found: `schemas.EVALUATIONS` rows of now.
        tolerance: Share of the recorded number; of one below 1 an absolute distance; 0 or more.

    Returns:
        Numbers that are not equal, and how many were compared.
    """
    before = {(row.arm, row.scorer, row.metric, row.slice): row for row in recorded}
    now = {(row["arm"], row["scorer"], row["metric"], row["slice"]): row for row in found}
    differences: list[Difference] = []
    n_compared = 0
    for key in dict.fromkeys([*before, *now]):
        for number in COMPARED:
            one: float | None = getattr(before[key], number) if key in before else None
            other: float | None = now[key][number] if key in now else None
            if one is None and other is None:
                continue
            n_compared += 1
            if one == other:
                continue
            arm, _, metric, slice_name = key
            difference = None if one is None or other is None else other - one
            largest = tolerance * max(1.0, abs(one or 0.0))
            differences.append(
                Difference(
                    arm=arm,
                    metric=metric,
                    slice=slice_name,
                    number=number,
                    recorded=one,
                    found=other,
                    difference=difference,
                    is_beyond=difference is None or abs(difference) > largest,
                )
            )
    return differences, n_compared


def _show(value: float | None, form: str = ".6g") -> str:
    return "-" if value is None else format(value, form)
