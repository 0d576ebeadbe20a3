"""What a run is called, and which tags it has, on Prefect's screens."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from eigenshift.ledger.runs import finish_run, start_run
from eigenshift.settings import load_preset
from flows.journal import _label, _number
from flows.run_labels import compose_name, list_tags, show_model

START = datetime(2027, 3, 4, 5, 6, 7, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "demo, 4 Mar 05:06:07"),
        (["jigsaw"], "demo on jigsaw, 4 Mar 05:06:07"),
        (["a", "b", "c", "d", "e"], "demo on a, b, c and 2 more, 4 Mar 05:06:07"),
    ],
)
def test_a_run_is_called_after_model_data_and_time(data: list[str], expected: str) -> None:
    """Many data sets are counted."""
    assert compose_name("demo", data, START) == expected


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("org/name", "org/name"),
        ("/models/org/name/", "name"),
        ("./model", "model"),
        ("s3://bucket/models/name", "name"),
    ],
)
def test_a_folder_is_called_by_its_last_part(model_id: str, expected: str) -> None:
    """Paths of a machine say nothing on a screen; ids of a hub are whole."""
    assert show_model(model_id) == expected


def test_a_run_has_its_status_as_a_tag_once_it_is_over() -> None:
    """Until then Prefect's state says all there is to say."""
    record = start_run("refresh", load_preset("demo"))
    tags = ["model:demo", "data:jigsaw", "data:toxicn", "data:rtp", "data:neutral"]
    assert list_tags(record) == tags
    finish_run(record, "held")
    assert list_tags(record) == [*tags, "status:held"]


@pytest.mark.parametrize(
    ("first", "count", "n_all", "expected"),
    [(0, 1, 1, None), (1, 1, 3, "2 of 3"), (2, 3, 6, "3-5 of 6")],
)
def test_pieces_are_numbered_where_there_are_several(
    first: int, count: int, n_all: int, expected: str | None
) -> None:
    """From one, as people count."""
    assert _number(first, count, n_all) == expected


def test_a_piece_is_called_after_its_data_and_layer() -> None:
    """Whatever of them its key has."""

    class Key:
        dataset, layer = "jigsaw", 0

    assert _label(Key(), "1 of 2") == "jigsaw layer 0 1 of 2"
    assert _label(None, None) == ""
