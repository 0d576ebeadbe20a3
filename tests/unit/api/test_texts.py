"""Texts from everywhere come out alike, and nothing is left out without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eigenshift.api.texts import Texts, read_texts
from eigenshift.base.errors import DatasetError, SettingsError
from eigenshift.base.schemas import SAMPLES
from eigenshift.settings import SourceSettings

WORDS = ["a green garden", "a quiet train", "the old bridge"]
LABELS = [1, 0, 1]


def give_pandas() -> Any:
    """A data frame."""
    import pandas as pd

    return pd.DataFrame({"text": WORDS, "label": LABELS}, index=[7, 8, 9])


def give_dataset() -> Any:
    """A data set of the `datasets` library."""
    from datasets import Dataset

    return Dataset.from_dict({"text": WORDS, "label": LABELS})


SOURCES = {
    "mapping": lambda: {"text": WORDS, "label": LABELS},
    "arrow": lambda: pa.table({"text": WORDS, "label": LABELS}),
    "pandas": give_pandas,
    "datasets": give_dataset,
}


def take(texts: Texts) -> list[tuple[str, str, bool | None]]:
    """Id, text and label of each."""
    columns = ("sample_id", "text", "is_toxic")
    return [tuple(row[name] for name in columns) for row in texts.samples.to_pylist()]  # type: ignore[misc]


@pytest.mark.parametrize("kind", SOURCES)
def test_tables_give_what_a_list_gives(kind: str) -> None:
    """The same ids, texts and labels, in the schema of a run."""
    found = read_texts(SOURCES[kind]())
    assert take(found) == take(read_texts(WORDS, LABELS))
    assert found.samples["is_toxic"].to_pylist() == [True, False, True]
    assert found.samples.schema.equals(SAMPLES)
    assert set(found.samples["source_uri"].to_pylist()) == {"memory"}


def test_files_give_what_a_list_gives(tmp_path: Path) -> None:
    """A column of a CSV, named; settings of a run; a text a line."""
    path = tmp_path / "comments.csv"
    rows = "".join(f"{word},{label}\n" for word, label in zip(WORDS, LABELS, strict=True))
    path.write_text("comment,bad\n" + rows, encoding="utf-8")
    columns = {"text": "comment", "label": "bad"}
    expected = take(read_texts(WORDS, LABELS))
    assert take(read_texts(path, columns=columns, role="labelled")) == expected
    settings = SourceSettings(
        name="texts", format="sentences", uri=str(path), columns=columns, role="labelled"
    )
    assert take(read_texts(settings)) == expected
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(WORDS), encoding="utf-8")
    assert [text for _, text, _ in take(read_texts(lines))] == WORDS


def test_columns_of_a_table_can_be_named() -> None:
    """Classes as labels, too."""
    table = {"comment": WORDS, "kind": ["rude", "kind", "rude"]}
    columns = {
        "text": "comment",
        "label": "kind",
        "toxic_labels": ["rude"],
        "nontoxic_labels": ["kind"],
    }
    found = read_texts(table, columns=columns, role="labelled")
    assert found.samples["is_toxic"].to_pylist() == [True, False, True]


def test_what_is_left_out_is_counted() -> None:
    """Repeats and empty texts, as in a run."""
    found = read_texts([*WORDS, WORDS[0], " "])
    assert len(found) == 3
    assert found.rejected == {"duplicate_text": 1, "empty_text": 1}
    assert "left out: duplicate_text 1" in found._repr_html_()


def test_parts_have_nothing_in_common(neutral_texts: list[str]) -> None:
    """The same ones in any order of the texts; other ones by another seed."""
    texts = read_texts(neutral_texts)
    first, second = texts.split(20, 10)
    ids = [set(part.samples["sample_id"].to_pylist()) for part in (first, second)]
    assert [len(part) for part in (first, second)] == [20, 10]
    assert not ids[0] & ids[1]
    again, _ = read_texts(neutral_texts[::-1]).split(20, 10)
    assert again.samples["sample_id"].to_pylist() == first.samples["sample_id"].to_pylist()
    other, _ = texts.split(20, 10, seed=1)
    assert set(other.samples["sample_id"].to_pylist()) != ids[0]


def test_a_slice_keeps_order() -> None:
    """Like a list's."""
    assert [text for _, text, _ in take(read_texts(WORDS)[1:])] == WORDS[1:]


def test_a_text_is_never_shown() -> None:
    """Neither in a notebook nor in a traceback."""
    found = read_texts(WORDS, LABELS)
    assert not any(word in found._repr_html_() + repr(found) for word in WORDS)


@pytest.mark.parametrize("source", [3, [b"bytes"], [["nested"]]])
def test_what_is_no_text_is_refused(source: Any) -> None:
    """With a word on what can be given."""
    with pytest.raises(DatasetError, match="read_texts: expected"):
        read_texts(source)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Too few; beside a file; a field that does not exist."""
    with pytest.raises(DatasetError, match="a label for each of 3 texts, found 1"):
        read_texts(WORDS, [1])
    with pytest.raises(SettingsError, match="found them beside a file"):
        read_texts(tmp_path / "some.csv", [1])
    with pytest.raises(SettingsError, match="colour"):
        read_texts(WORDS, colour="green")
