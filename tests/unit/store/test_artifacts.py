"""Artifacts: the manifest is written last and is the cache."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenshift.base.errors import ArtifactError
from eigenshift.store.artifacts import ArtifactStore, Order, StageResult
from eigenshift.store.manifests import ArtifactReference, InputRecord, compute_fingerprint
from eigenshift.store.traffic import metering
from eigenshift.store.workspace import Workspace

SCHEMA = pa.schema([("value", pa.int64())])


class CountingWork:
    """Writes a small table and counts how often it was asked to."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, workspace: Workspace) -> None:
        """Do the work."""
        self.n_calls += 1
        workspace.write_rows("part.parquet", [{"value": 1}, {"value": 2}], SCHEMA)
        workspace.facts = {"n": 2}


@pytest.fixture(params=["local", "memory"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An artifact store on each kind of filesystem."""
    root = tmp_path / "store" if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return ArtifactStore(str(root))


def produce(artifacts: ArtifactStore, work: Any, **settings: Any) -> StageResult:
    """Produce an artifact of kind "table"."""
    return artifacts.produce("table", step_version=1, settings=settings, inputs=[], work=work)


def damage(artifacts: ArtifactStore, reference: ArtifactReference, data: bytes) -> None:
    """Overwrite the artifact's only file."""
    record = artifacts.open(reference).manifest.files[0]
    artifacts.store.write_bytes(f"{reference.folder}/{record.stored_as}", data)


def test_the_second_time_does_no_work(artifacts: ArtifactStore) -> None:
    """The same work is found by its fingerprint."""
    work = CountingWork()
    first, second = produce(artifacts, work, a=1), produce(artifacts, work, a=1)
    assert (first.was_cached, second.was_cached, work.n_calls) == (False, True, 1)
    assert first.reference == second.reference
    assert artifacts.open(second.reference).read_table("part.parquet")["value"].to_pylist() == [
        1,
        2,
    ]


def test_another_setting_is_another_artifact(artifacts: ArtifactStore) -> None:
    """A changed setting redoes the work and leaves the old artifact."""
    work = CountingWork()
    first, second = produce(artifacts, work, a=1), produce(artifacts, work, a=2)
    assert work.n_calls == 2
    assert first.reference != second.reference
    assert len(artifacts.list_manifests()) == 2


def test_work_that_fails_leaves_nothing_visible(artifacts: ArtifactStore) -> None:
    """A stage that stops half-way has written no artifact, and the next try does the work."""

    def fail(workspace: Workspace) -> None:
        CountingWork()(workspace)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        produce(artifacts, fail, a=1)
    assert artifacts.list_manifests() == []
    assert artifacts.store.list_paths("artifacts") == []
    assert produce(artifacts, CountingWork(), a=1).was_cached is False


@pytest.mark.parametrize("data", [b"", b"shorter"], ids=["emptied", "truncated"])
def test_a_file_of_another_size_is_redone(artifacts: ArtifactStore, data: bytes) -> None:
    """A damaged file is noticed on use and made again."""
    work = CountingWork()
    first = produce(artifacts, work, a=1)
    damage(artifacts, first.reference, data)
    again = produce(artifacts, work, a=1)
    assert (again.was_cached, work.n_calls) == (False, 2)
    assert artifacts.open(again.reference).read_table("part.parquet").num_rows == 2


def test_a_flipped_bit_is_noticed_locally(tmp_path: Path) -> None:
    """Same size, other content: the digest tells."""
    artifacts, work = ArtifactStore(str(tmp_path)), CountingWork()
    first = produce(artifacts, work, a=1)
    record = artifacts.open(first.reference).manifest.files[0]
    data = bytearray(artifacts.store.read_bytes(f"{first.reference.folder}/{record.stored_as}"))
    data[len(data) // 2] ^= 1
    damage(artifacts, first.reference, bytes(data))
    assert produce(artifacts, work, a=1).was_cached is False
    assert work.n_calls == 2


def test_a_damaged_manifest_is_redone(artifacts: ArtifactStore) -> None:
    """A manifest that is no manifest is treated as none."""
    work = CountingWork()
    first = produce(artifacts, work, a=1)
    artifacts.store.write_bytes(f"{first.reference.folder}/manifest.json", b"{}")
    assert produce(artifacts, work, a=1).was_cached is False


def test_a_reader_of_one_file_depends_on_its_content_only(artifacts: ArtifactStore) -> None:
    """Two artifacts with the same file give the same input identity, so new data redoes little."""
    one = produce(artifacts, CountingWork(), a=1).reference
    two = produce(artifacts, CountingWork(), a=2).reference
    files = [artifacts.open(item).refer_to_file("part.parquet") for item in (one, two)]
    results = [
        artifacts.produce("next", step_version=1, settings={}, inputs=[file], work=CountingWork())
        for file in files
    ]
    assert results[0].reference == results[1].reference
    assert results[1].was_cached


@pytest.mark.parametrize("was_cached", [False, True])
def test_the_files_of_a_result_are_read_without_its_manifest(was_cached: bool) -> None:
    """One request for each file, once per process; the manifest was read when it was found."""
    artifacts = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    values = [uuid.uuid4().int % 2**60 for _ in range(5)]  # copies are kept by digest

    def work(workspace: Workspace) -> None:
        for place, value in enumerate(values):
            workspace.write_rows(f"part-{place}.parquet", [{"value": value}], SCHEMA)

    for _ in range(1 + was_cached):
        made = produce(artifacts, work, a=1)
    assert made.was_cached == was_cached
    assert [file.rows for file in made.files] == [1] * 5
    artifacts.store.remove(f"{made.reference.folder}/manifest.json")
    with metering() as meter:
        assert artifacts.read_files(made.files)["value"].to_pylist() == values
        assert artifacts.read_table(made.files[3])["value"].to_pylist() == values[3:4]
    assert meter.traffic.requests == 5
    artifacts.store.remove(made.files[4].path)
    assert artifacts.read_table(made.files[4])["value"].to_pylist() == values[4:]


def test_a_file_that_is_gone_is_named_when_it_is_read_by_reference(
    artifacts: ArtifactStore,
) -> None:
    """Among several asked for at once."""

    def work(workspace: Workspace) -> None:
        for place in range(5):
            value = uuid.uuid4().int % 2**60
            workspace.write_rows(f"part-{place}.parquet", [{"value": value}], SCHEMA)

    made = produce(artifacts, work, a=1)
    artifacts.store.remove(made.files[3].path)
    with pytest.raises(ArtifactError, match=rf"{made.files[3].stored_as}.*found none"):
        artifacts.read_files(made.files)


def test_a_missing_file_name_is_explained(artifacts: ArtifactStore) -> None:
    """Asking for a file that the artifact never had names those it has."""
    reference = produce(artifacts, CountingWork(), a=1).reference
    with pytest.raises(ArtifactError, match=r"part\.parquet"):
        artifacts.open(reference).fetch("other.parquet")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False),
        max_size=5,
    )
)
def test_the_fingerprint_does_not_depend_on_the_order_of_settings(settings: dict[str, Any]) -> None:
    """Equal settings give equal fingerprints, whatever the order of their keys."""
    turned = dict(reversed(list(settings.items())))
    inputs = [InputRecord(kind="a", fingerprint="f", identity="i")]
    assert compute_fingerprint("k", 1, settings, inputs) == compute_fingerprint(
        "k", 1, turned, inputs
    )


def test_kind_version_settings_and_inputs_all_count() -> None:
    """Each part of the fingerprint changes it."""
    one = InputRecord(kind="a", fingerprint="f", identity="i")
    other = InputRecord(kind="a", fingerprint="f", identity="j")
    found = {
        compute_fingerprint("k", 1, {"a": 1}, [one]),
        compute_fingerprint("l", 1, {"a": 1}, [one]),
        compute_fingerprint("k", 2, {"a": 1}, [one]),
        compute_fingerprint("k", 1, {"a": 2}, [one]),
        compute_fingerprint("k", 1, {"a": 1}, [other]),
        compute_fingerprint("k", 1, {"a": 1}, [one, other]),
        compute_fingerprint("k", 1, {"a": 1}, [other, one]),
    }
    assert len(found) == 7


class TogetherWork:
    """Writes tables for all that is wanted, in pieces; may fail after some of them."""

    def __init__(self, *pieces: Sequence[str], fails: bool = False) -> None:
        self.pieces, self.fails = pieces, fails
        self.wanted: list[list[str]] = []
        self.is_closed = False

    def __call__(self, workspaces: Mapping[str, Workspace]) -> Generator[Sequence[str], None, None]:
        """Do the work for those among the pieces that are wanted."""
        self.wanted.append(sorted(workspaces))
        try:
            for piece in self.pieces:
                names = [name for name in piece if name in workspaces]
                for name in names:
                    row = {"value": ord(name)}
                    workspaces[name].write_rows("part.parquet", [row], SCHEMA)
                yield names
            if self.fails:
                raise ArtifactError("made up")
        finally:
            self.is_closed = True


def produce_letters(
    artifacts: ArtifactStore, work: TogetherWork, letters: str
) -> dict[str, StageResult]:
    """Produce one artifact per letter, in one piece of work."""
    orders = {letter: Order({"letter": letter.lower()}, []) for letter in letters}
    return artifacts.produce_together("table", step_version=1, orders=orders, work=work)


def test_one_piece_of_work_makes_only_the_artifacts_that_are_missing(
    artifacts: ArtifactStore,
) -> None:
    """Each is an artifact of its own, as if it had been produced alone."""
    alone = produce(artifacts, CountingWork(), letter="a")
    work = TogetherWork("abc")
    results = produce_letters(artifacts, work, "abc")
    assert work.wanted == [["b", "c"]]
    assert [results[name].was_cached for name in "abc"] == [True, False, False]
    assert results["a"].reference == alone.reference
    table = artifacts.open(results["c"].reference).read_table("part.parquet")
    assert table["value"].to_pylist() == [ord("c")]
    again = TogetherWork("abc")
    assert all(result.was_cached for result in produce_letters(artifacts, again, "abc").values())
    assert again.wanted == []


def test_work_that_fails_keeps_what_it_had_finished(artifacts: ArtifactStore) -> None:
    """The next attempt goes on from there."""
    work = TogetherWork("a", "b", fails=True)
    with pytest.raises(ArtifactError, match="made up"):
        produce_letters(artifacts, work, "abc")
    again = TogetherWork("abc")
    results = produce_letters(artifacts, again, "abc")
    assert again.wanted == [["c"]]
    assert [results[name].was_cached for name in "abc"] == [True, True, False]


def test_work_that_ends_early_is_a_defect(artifacts: ArtifactStore) -> None:
    """What it forgot is named."""
    with pytest.raises(ArtifactError, match="write c too"):
        produce_letters(artifacts, TogetherWork("ab"), "abc")


def test_equal_orders_are_one_artifact(artifacts: ArtifactStore) -> None:
    """Two names for the same thing: made once, found under both."""
    work = TogetherWork("aAb")
    results = produce_letters(artifacts, work, "aAb")
    assert work.wanted == [["a", "b"]]
    assert results["a"] == results["A"]


def test_work_is_closed_when_publishing_fails(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a lock, which only the thread that took it can give back."""
    work = TogetherWork("ab")

    def fail(*_: Any) -> None:
        raise OSError("made up")

    monkeypatch.setattr(artifacts.store, "publish_file", fail)
    with pytest.raises(OSError, match="made up") as caught:
        produce_letters(artifacts, work, "ab")
    assert caught.traceback  # which keeps the frames alive
    assert work.is_closed


def test_seconds_and_traffic_of_common_work_add_up(artifacts: ArtifactStore) -> None:
    """They are shared out, not counted once per artifact."""
    results = produce_letters(artifacts, TogetherWork("abc"), "abc")
    written = sum(result.traffic.bytes_written for result in results.values())
    stored = sum(artifacts.open(result.reference).manifest.bytes for result in results.values())
    assert stored < written < 3 * stored + 12_000
