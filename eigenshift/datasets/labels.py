"""Labels of columns that the settings name, and what stops a run whose labels are none.

A label is read by itself; whether a column is one of labels shows only in all of them: a third
class, scores up to 100 or a column of counts give rows that are rejected one by one, while what is
kept means something else. Errors show numbers and known words, never another cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.label_words import KNOWN_LABELS
from eigenshift.datasets.records import (
    Item,
    Reason,
    RejectedRecordError,
    Rejection,
    describe_label,
    parse_label,
    parse_number,
    parse_score,
)
from eigenshift.settings import COLUMN_FORMATS, ColumnMapping, SourceSettings

STRANGE = frozenset({Reason.label_out_of_range, Reason.label_unreadable})
FOUND = ", found "
MAX_SHOWN = 8
MAX_ACCIDENTS = 2
"""Strange labels, all different, that say nothing of a column whose meaning is published."""


def read_label(
    value: object, columns: ColumnMapping, threshold: float, names: Sequence[str] | None = None
) -> tuple[bool, float | None]:
    """Read the label of a column that the settings name.

    Args:
        value: As it stands in the file.
        columns: What the settings say of it.
        threshold: Where labels are scores, from here on they are toxic.
        names: Of the classes, where the file numbers them and names them beside.

    Returns:
        The verdict, and the score if the label is one.

    Raises:
        RejectedRecordError: It is missing, unscored, out of range or no label.
    """
    column = columns.label or ""
    if names is not None:
        value = _name_class(value, column, names)
    if columns.toxic_labels:
        return _find_class(value, columns), None
    if columns.label_scale == 1.0:
        return parse_label(value, column, threshold)
    number = parse_number(value, column)
    score = parse_score(number if number == -1 else number / columns.label_scale, column)
    return score >= threshold, score


def _name_class(value: object, column: str, names: Sequence[str]) -> object:
    """The name of a numbered class; -1 is how the hub's library writes that there is none."""
    number = parse_number(value, column) if str(value).strip().lstrip("-").isdigit() else value
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else value


def _find_class(value: object, columns: ColumnMapping) -> bool:
    label = _spell(value)
    if not label:
        raise RejectedRecordError(
            Reason.label_missing, f"{columns.label}: expected a label, found an empty cell"
        )
    if label in map(_spell, columns.toxic_labels):
        return True
    if label in map(_spell, columns.nontoxic_labels):
        return False
    found = describe_label(value)
    raise RejectedRecordError(
        Reason.label_unreadable,
        f"{columns.label}: expected one of the labels in the settings{FOUND}{found}",
    )


def _spell(value: object) -> str:
    """One spelling for 2, 2.0 and "2", for true and "True"."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


class LabelTally:
    """Counts the labels of one file."""

    def __init__(self) -> None:
        self._met: Counter[str] = Counter()
        self._strange: Counter[str] = Counter()
        self._verdicts: Counter[bool] = Counter()
        self._n_unscored = 0

    def add(self, item: Item) -> None:
        """Count the label of one row, if it has one."""
        if isinstance(item, Rejection):
            if item.reason in STRANGE:
                self._strange[item.detail.rpartition(FOUND)[2]] += 1
            self._n_unscored += item.reason is Reason.unscored
        elif item.is_toxic is not None:
            self._verdicts[item.is_toxic] += 1
            if item.label is not None:
                self._met[item.label] += 1

    def check(self, uri: str, source: SourceSettings, max_unknown: float) -> None:
        """Stop where the labels of a file are none.

        Args:
            uri: Of the file.
            source: Its settings.
            max_unknown: Share of the labels met, 0 to 1, that may be no labels.

        Raises:
            DatasetError: More are none, or it cannot be told what -1 means.
        """
        is_mapped = source.format in COLUMN_FORMATS
        n_strange = self._strange.total()
        n_labels = n_strange + self._verdicts.total()
        is_accident = n_strange <= MAX_ACCIDENTS and max(self._strange.values(), default=0) <= 1
        if n_strange > max_unknown * n_labels and (is_mapped or not is_accident):
            raise DatasetError(
                f"{uri}: expected labels, found {n_strange} of {n_labels} rows with others. Labels "
                f"met: {self.describe()}. Known are {KNOWN_LABELS}. {_advise(source)}"
            )
        has_no_opposite = self._verdicts[True] and not self._verdicts[False]
        if is_mapped and self._n_unscored and has_no_opposite and not source.columns.toxic_labels:
            raise DatasetError(
                f"{uri}: expected labels of both kinds, found {self._verdicts[True]} rows that say "
                f"toxic, {self._n_unscored} of -1 and none that says otherwise. -1 is read as not "
                "scored. If it says that a text is not toxic, set `columns.toxic_labels: ['1']` "
                "and `columns.nontoxic_labels: ['-1']`."
            )

    @property
    def has_any(self) -> bool:
        """Whether it has met a label."""
        return bool(self._met or self._strange)

    def describe(self) -> str:
        """The labels met, the commonest first, with their rows."""
        met = self._met + self._strange
        shown = [f"{label} ({n})" for label, n in met.most_common(MAX_SHOWN)]
        more = f" and {len(met) - MAX_SHOWN} more" if len(met) > MAX_SHOWN else ""
        return f"{', '.join(shown)}{more}"


def _advise(source: SourceSettings) -> str:
    classes = (
        "say which classes are which by `columns.toxic_labels` and `columns.nontoxic_labels`, or "
        "where scores end by `columns.label_scale`"
    )
    if source.format in COLUMN_FORMATS:
        begin = f"Set `columns.label` to a column of such labels, or {classes}"
    else:
        begin = (
            "The file is in another schema: set the source's `format` to 'sentences', its `role` "
            f"to 'labelled' and its `columns`, and {classes}"
        )
    return f"{begin}. `ingestion.max_unknown_labels` is the share that may be rejected instead."
