"""Neuron statistics against scikit-learn, a hand-checked table and plain SQL."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.base.schemas import NEURONS
from eigenshift.detection.labelled_layers import (
    connect,
    load_sql,
    open_labelled_layer,
    parse_memory_limit,
    split_units,
)
from eigenshift.detection.neuron_statistics import (
    UnitStatistics,
    compute_neuron_statistics,
    count_units,
    query_neuron_statistics,
)
from eigenshift.detection.neuron_summaries import summarise_shard
from eigenshift.detection.ranking import decode_keys, encode_keys
from eigenshift.stages.tables import NEURON_SUMMARIES
from eigenshift.store import duckdb_files
from eigenshift.store.storage import Store
from eigenshift.store.stored_file import StoredFile
from eigenshift.store.workspace import Workspace
from tests.support.activation_shards import (
    MLP_MAX,
    RESIDUAL_MEAN,
    compute_neurons,
    summarise,
    write_samples,
    write_shard,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "neuron_statistics"
NUMBERS = [field.name for field in NEURONS if pa.types.is_floating(field.type)]
COUNTS = ["n_toxic", "n_nontoxic", "n_nonfinite"]


def make_ids(n_samples: int) -> list[str]:
    """Ids whose order differs from the order of the rows."""
    return [f"s{(7 * index) % 1009:04d}" for index in range(n_samples)]


@pytest.fixture
def random_values() -> np.ndarray:
    """(sample, unit) with ties, a constant unit, and values that are not finite."""
    generator = np.random.default_rng(3)
    values = generator.normal(size=(90, 12)).astype(np.float32)
    values[:, 3] = np.round(values[:, 3])
    values[:, 5] = -2.5
    values[4, 6], values[5, 6], values[6, 7] = np.nan, np.inf, -np.inf
    return values


def compute_table(
    folder: Path,
    values: np.ndarray,
    is_toxic: list[bool | None],
    *,
    languages: list[str] | None = None,
    rows_per_shard: int = 40,
    reverse: bool = False,
    memory_limit: str = "500MB",
) -> pa.Table:
    """Write shards and samples, compute, and read the table back."""
    folder.mkdir(parents=True)
    ids = make_ids(len(values))
    samples = write_samples(folder / "samples.parquet", ids, is_toxic, languages)
    shards = [
        write_shard(
            folder / f"shard-{first}.parquet",
            ids[first : first + rows_per_shard],
            [{MLP_MAX.column: values[first : first + rows_per_shard]}],
        )
        for first in range(0, len(values), rows_per_shard)
    ]
    (folder / "out").mkdir()
    workspace = Workspace(folder / "out")
    order = shards[::-1] if reverse else shards
    table = compute_neurons(order, samples, workspace, memory_limit=memory_limit)
    assert [path.name for path in workspace.folder.iterdir()] == ["neurons.parquet"]
    return table


def alternate(n_samples: int) -> list[bool | None]:
    """Labels with every third sample toxic."""
    return [index % 3 == 0 for index in range(n_samples)]


# --- the numbers ----------------------------------------------------------------------------


FINITE = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-60_000, 60_000, width=16),
    st.sampled_from([0.0, -0.0, 6e-8, float("nan"), float("inf"), float("-inf")]),
)


def compare_values(values: np.ndarray, is_toxic: np.ndarray) -> UnitStatistics:
    """Statistics of one unit from its values, shape (sample,)."""
    is_finite = np.isfinite(values)
    keys = encode_keys(values)
    (found,) = count_units(
        [keys[is_toxic & is_finite]],
        [keys[~is_toxic & is_finite]],
        [int(np.count_nonzero(~is_finite))],
    )
    return found


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(FINITE, st.booleans()), min_size=1, max_size=40),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_statistics_equal_scikit_learn_and_numpy(rows, dtype):
    """Every statistic of a unit equals an independent one over its finite values, or is NaN."""
    values = np.array([row[0] for row in rows]).astype(dtype)
    is_toxic = np.array([row[1] for row in rows])
    found = compare_values(values, is_toxic)
    finite = np.isfinite(values)
    x, y = values[finite].astype(np.float64), is_toxic[finite]
    toxic, nontoxic = x[y], x[~y]
    assert (found.n_toxic, found.n_nontoxic) == (len(toxic), len(nontoxic))
    assert found.n_nonfinite == np.count_nonzero(~finite)
    expected: dict[str, float | None] = dict.fromkeys(NUMBERS)
    if len(toxic):
        expected["average_precision"] = average_precision_score(y, x)
        expected["mean_toxic"] = toxic.mean()
    if len(nontoxic):
        expected["mean_nontoxic"] = nontoxic.mean()
    if len(toxic) > 1:
        expected["variance_toxic"] = toxic.var(ddof=1)
    if len(nontoxic) > 1:
        expected["variance_nontoxic"] = nontoxic.var(ddof=1)
    if len(toxic) and len(nontoxic):
        expected["auroc"] = roc_auc_score(y, x)
        spread = len(toxic) * toxic.var() + len(nontoxic) * nontoxic.var()
        if len(x) > 2 and not (np.ptp(toxic) == 0 and np.ptp(nontoxic) == 0):
            pooled = np.sqrt(spread / (len(x) - 2))
            expected["cohens_d"] = (toxic.mean() - nontoxic.mean()) / pooled
    for name, value in expected.items():
        close = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)
        assert getattr(found, name) == close, name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60))
def test_keys_have_the_order_of_their_values(numbers):
    """Sorting the keys of float32 values gives numpy's sort of the values, bit for bit."""
    values = np.array(numbers, np.float32)
    found = decode_keys(np.sort(encode_keys(values)))
    np.testing.assert_array_equal(found, np.sort(values).astype(np.float64))


def test_every_half_has_its_own_key_in_order():
    """All finite float16 values: keys rise with the values, only the two zeros share one."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    keys = encode_keys(halves)
    np.testing.assert_array_equal(decode_keys(keys), halves.astype(np.float64))
    order = np.argsort(halves, kind="stable")
    assert (np.diff(keys[order].astype(int)) >= 0).all()
    assert len(np.unique(keys)) == len(halves) - 1


def test_constant_unit_has_auroc_of_exactly_one_half():
    """A unit that never changes says nothing: AUROC 0.5, and no Cohen's d, with the reason."""
    found = compare_values(np.full(9, 0.1, np.float32), np.arange(9) < 4)
    assert found.auroc == 0.5
    assert found.variance_toxic == found.variance_nontoxic == 0.0
    assert found.cohens_d is None
    assert found.reason == "zero_variance"


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([True, True], "no_nontoxic_values"),
        ([False, False], "no_toxic_values"),
        ([], "no_toxic_values, no_nontoxic_values"),
        ([True, False], "one_toxic_value, one_nontoxic_value"),
        ([True, False, False], "one_toxic_value"),
    ],
)
def test_missing_statistics_have_a_reason(labels, reason):
    """A statistic that does not exist is None and its reason says why."""
    values = np.arange(len(labels), dtype=np.float16)
    found = compare_values(values, np.array(labels, dtype=bool))
    assert found.reason == reason
    assert found.variance_toxic is None or found.variance_nontoxic is None
    assert (found.auroc is None) == (len(set(labels)) < 2)


def test_statistics_do_not_depend_on_the_order_of_samples(random_values):
    """Shuffling the samples changes not a single bit."""
    is_toxic = np.arange(90) % 3 == 0
    order = np.random.default_rng(0).permutation(90)
    for unit in random_values.T:
        assert compare_values(unit, is_toxic) == compare_values(unit[order], is_toxic[order])


# --- golden table and SQL ---------------------------------------------------------------------


def read_golden_input() -> tuple[list[str], list[bool], np.ndarray]:
    """Ids, labels and values (sample, unit) of the golden input."""
    rows = list(csv.DictReader(io.StringIO((GOLDEN / "input.csv").read_text())))
    values = np.array([[float(row[f"unit_{unit}"]) for unit in range(4)] for row in rows])
    return [row["sample_id"] for row in rows], [row["is_toxic"] == "true" for row in rows], values


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("way", ["stage", "sql"])
def test_golden_table(tmp_path, dtype, way):
    """The stage and `neuron_statistics.sql` both give the hand-checked table."""
    ids, is_toxic, values = read_golden_input()
    samples = write_samples(tmp_path / "samples.parquet", ids, is_toxic)
    shard = write_shard(tmp_path / "shard.parquet", ids, [{MLP_MAX.column: values.astype(dtype)}])
    if way == "stage":
        (tmp_path / "out").mkdir()
        workspace = Workspace(tmp_path / "out")
        found = compute_neurons([shard], samples, workspace)
    else:
        found = query_neuron_statistics(
            [shard], [samples], "demo", 0, MLP_MAX, range(4), "500MB", tmp_path
        )
    expected = list(csv.DictReader(io.StringIO((GOLDEN / "expected.csv").read_text())))
    assert found.num_rows == len(expected)
    for found_row, expected_row in zip(found.to_pylist(), expected, strict=True):
        for name in NUMBERS + COUNTS:
            value = float(expected_row[name]) if expected_row[name] else None
            assert found_row[name] == (value if value is None else pytest.approx(value, rel=1e-12))
        if way == "stage":
            assert found_row["reason"] == (expected_row["reason"] or None)


def test_plain_sql_agrees_with_the_stage(tmp_path, random_values):
    """The readable query gives the stage's numbers, ties, constants and non-finite included."""
    table = compute_table(tmp_path / "run", random_values, alternate(90))
    shards = sorted((tmp_path / "run").glob("shard-*.parquet"))
    samples = [tmp_path / "run" / "samples.parquet"]
    found = query_neuron_statistics(
        shards, samples, "demo", 0, MLP_MAX, range(2, 9), "500MB", tmp_path
    )
    assert found["neuron_index"].to_pylist() == list(range(2, 9))
    for name in NUMBERS + COUNTS:
        for one, other in zip(
            found[name].to_pylist(), table[name].slice(2, 7).to_pylist(), strict=True
        ):
            assert one == (other if other is None else pytest.approx(other, rel=1e-12, abs=1e-13))


# --- the table --------------------------------------------------------------------------------


def test_table_has_the_schema_and_one_row_per_unit(tmp_path, random_values):
    """With one language there is one row per unit, under 'all', in order."""
    table = compute_table(tmp_path / "run", random_values, alternate(90))
    assert table.schema.equals(NEURONS)
    assert table["neuron_index"].to_pylist() == list(range(12))
    assert set(table["language"].to_pylist()) == {"all"}


def test_several_languages_get_rows_of_their_own(tmp_path, random_values):
    """With two languages each has the statistics of its own samples, after 'all'."""
    languages = ["zh" if index % 2 else "en" for index in range(90)]
    table = compute_table(tmp_path / "run", random_values, alternate(90), languages=languages)
    assert table["language"].to_pylist() == ["all"] * 12 + ["en"] * 12 + ["zh"] * 12
    chinese = np.arange(90) % 2 == 1
    labels = (np.arange(90) % 3 == 0)[chinese]
    expected = [compare_values(unit, labels).auroc for unit in random_values[chinese].T]
    assert table["auroc"].slice(24, 12).to_pylist() == expected


@pytest.mark.parametrize("folder", ["language=en", "layer=3", "dataset=x", "is_toxic=1/site=x"])
def test_folders_that_look_like_partitions_are_folders(tmp_path, random_values, folder):
    """DuckDB would otherwise take the folder's value for the column of every row."""
    languages = ["zh" if index % 2 else "en" for index in range(90)]
    tables = [
        compute_table(tmp_path / place, random_values, alternate(90), languages=languages)
        for place in ("plain", folder)
    ]
    assert tables[0].equals(tables[1])
    shards = sorted((tmp_path / folder).glob("shard-*.parquet"))
    samples = [tmp_path / folder / "samples.parquet"]
    with open_labelled_layer(shards, samples, "demo", 0, "500MB", tmp_path) as labelled:
        assert sorted(set(labelled.languages)) == ["en", "zh"]
        assert labelled.n_samples == 90
        values = labelled.read_units(MLP_MAX.column, 0, 12)
        assert np.isfinite(values).sum() == np.isfinite(random_values).sum()
        sql = labelled.query("neuron_statistics", MLP_MAX.column, 0, 12)
    assert sql["auroc"].to_pylist() == tables[0]["auroc"].slice(0, 12).to_pylist()


def test_unlabelled_samples_and_other_datasets_take_no_part(tmp_path, random_values):
    """Only labelled samples of the dataset asked for are counted."""
    labels = alternate(90)
    labels[10] = labels[11] = None
    table = compute_table(tmp_path / "run", random_values, labels)
    assert table["n_toxic"][0].as_py() + table["n_nontoxic"][0].as_py() == 88
    workspace = Workspace(tmp_path / "run" / "out")
    shards = sorted((tmp_path / "run").glob("shard-*.parquet"))
    other = compute_neurons(shards, tmp_path / "run" / "samples.parquet", workspace, "other")
    assert set(other["reason"].to_pylist()) == {"no_toxic_values, no_nontoxic_values"}
    assert other["auroc"].null_count == other.num_rows == 12


def test_bytes_do_not_depend_on_shards_or_memory(tmp_path, random_values, monkeypatch):
    """Other shard sizes, another order of shards, and blocks of one unit give the same bytes."""
    labels = alternate(90)
    compute_table(tmp_path / "one", random_values, labels)
    compute_table(tmp_path / "two", random_values, labels, rows_per_shard=13, reverse=True)
    monkeypatch.setattr("eigenshift.detection.labelled_layers.BLOCK_SHARE", 1e-9)
    compute_table(tmp_path / "three", random_values, labels)
    contents = {
        (tmp_path / name / "out" / "neurons.parquet").read_bytes()
        for name in ("one", "two", "three")
    }
    assert len(contents) == 1


def test_layers_and_sites_are_kept_apart(tmp_path):
    """Each layer and site has its own statistics, at its own width."""
    ids, labels = make_ids(8), [True] * 4 + [False] * 4
    rising = np.arange(8, dtype=np.float16)[:, None]
    shard = write_shard(
        tmp_path / "shard.parquet",
        ids,
        [
            {MLP_MAX.column: rising, RESIDUAL_MEAN.column: np.hstack([-rising, rising])},
            {MLP_MAX.column: -rising, RESIDUAL_MEAN.column: np.zeros((8, 2), np.float16)},
        ],
    )
    samples = write_samples(tmp_path / "samples.parquet", ids, labels)
    (tmp_path / "out").mkdir()
    workspace = Workspace(tmp_path / "out")
    aurocs = []
    for layer in (0, 1):
        table = compute_neurons(
            [shard], samples, workspace, layer=layer, sites=[RESIDUAL_MEAN, MLP_MAX]
        )
        assert table["site"].to_pylist() == ["residual", "residual", "mlp_activation"]
        assert table["layer"].to_pylist() == [layer] * 3
        aurocs.append(table["auroc"].to_pylist())
    assert aurocs == [[1.0, 0.0, 0.0], [0.5, 0.5, 1.0]]


# --- refusals ---------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path, random_values) -> tuple[Path, Path]:
    """A shard of random values and its samples."""
    ids = make_ids(90)
    samples = write_samples(tmp_path / "samples.parquet", ids, alternate(90))
    return write_shard(tmp_path / "shard.parquet", ids, [{MLP_MAX.column: random_values}]), samples


@pytest.mark.parametrize("copied_bytes", [0, 1 << 20])
def test_a_remote_shard_is_summarised_in_place_unless_it_is_small(
    tmp_path, shard, monkeypatch, copied_bytes
):
    """The same bytes as from a local file, without a copy of a large shard on this machine."""
    monkeypatch.setattr(duckdb_files, "COPIED_BYTES", copied_bytes)
    path, samples = shard
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("shard.parquet", path.read_bytes())
    sha256 = store.digest("shard.parquet")
    remote = StoredFile(store, "shard.parquet", path.stat().st_size, sha256)
    (tmp_path / "remote").mkdir()
    summarise_shard(remote, samples, "demo", [MLP_MAX], Workspace(tmp_path / "remote"))
    local = summarise(path, samples)
    assert (tmp_path / "remote" / NEURON_SUMMARIES.file).read_bytes() == local.read_bytes()
    copy = remote.find_near()
    assert (copy is not None) == (copied_bytes > 0)
    if copy is not None:
        copy.unlink()  # for the other case, whose file is the same


def test_a_summary_given_twice_is_refused(tmp_path, shard):
    """Its samples would count twice: an error that names it."""
    summary = summarise(*shard)
    with pytest.raises(ArtifactError, match=r"neuron_summaries.parquet 2 times"):
        compute_neuron_statistics(
            [summary, summary], "demo", 0, [MLP_MAX], "500MB", Workspace(tmp_path)
        )


def test_a_sample_with_two_rows_is_refused(tmp_path):
    """A sample twice in one layer is an error that names it, not a double count."""
    samples = write_samples(tmp_path / "samples.parquet", ["a", "b"], [True, False])
    values = np.zeros((3, 2), np.float16)
    shard = write_shard(tmp_path / "shard.parquet", ["a", "b", "a"], [{MLP_MAX.column: values}])
    with pytest.raises(ArtifactError, match=r"layer 0: expected one row per sample, found 2 .* a"):
        summarise(shard, samples)


def test_a_missing_site_is_refused(shard):
    """A site the shard lacks is an error that names the ones it has."""
    with pytest.raises(ArtifactError, match="'residual_mean', found mlp_activation_max"):
        summarise(*shard, sites=[RESIDUAL_MEAN])


def test_a_missing_layer_is_refused(tmp_path, shard):
    """A layer without summaries is an error, not a table of nothing."""
    with pytest.raises(ArtifactError, match="layer 7 of demo, found none"):
        compute_neuron_statistics(
            [summarise(*shard)], "demo", 7, [MLP_MAX], "500MB", Workspace(tmp_path)
        )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("width", "found 12 in float32 and 3 in float32"),
        ("precision", "found 12 in float16 and 12 in float32"),
    ],
)
def test_shards_of_two_models_are_refused(tmp_path, random_values, shard, change, found):
    """Shards of different width or precision are not mixed."""
    values = random_values[:, :3] if change == "width" else random_values.astype(np.float16)
    other = write_shard(tmp_path / "other.parquet", make_ids(90), [{MLP_MAX.column: values}])
    summaries = [summarise(*shard), summarise(other, shard[1])]
    with pytest.raises(ArtifactError, match=found):
        compute_neuron_statistics(summaries, "demo", 0, [MLP_MAX], "500MB", Workspace(tmp_path))


def test_too_small_a_memory_limit_names_the_setting(tmp_path):
    """Where one batch cannot fit, the error says which setting to raise."""
    ids = make_ids(1000)
    values = np.random.default_rng(0).normal(size=(1000, 4000)).astype(np.float16)
    samples = write_samples(tmp_path / "samples.parquet", ids, alternate(1000))
    shard = write_shard(tmp_path / "shard.parquet", ids, [{MLP_MAX.column: values}])
    with (
        open_labelled_layer([shard], [samples], "demo", 0, "40MB", tmp_path) as labelled,
        pytest.raises(SettingsError, match="duckdb_memory_limit"),
    ):
        labelled.read_units(MLP_MAX.column, 0, 4000)


# --- DuckDB -----------------------------------------------------------------------------------


def test_connection_loads_no_extensions(tmp_path):
    """Neither downloads nor loads happen behind our back, and the spill folder is ours."""
    connection = connect("100MB", tmp_path)
    names = [
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "preserve_insertion_order",
        "temp_directory",
    ]
    values = [
        connection.sql(f"SELECT current_setting('{name}')").fetchall()[0][0] for name in names
    ]
    assert values == [False, False, True, str(tmp_path)]


def test_labels_are_the_side_of_the_join_that_is_held_in_memory(tmp_path):
    """DuckDB builds its hash table from the labels, never from the wide activations."""
    ids = make_ids(90)
    samples = write_samples(tmp_path / "samples.parquet", ids, alternate(90))
    values = np.zeros((30, 8), np.float16)
    shards = [  # several files: only then does DuckDB take the filtered shards for the smaller side
        write_shard(
            tmp_path / f"{first}.parquet", ids[first : first + 30], [{MLP_MAX.column: values}]
        )
        for first in (0, 30, 60)
    ]
    with open_labelled_layer(shards, [samples], "demo", 0, "500MB", tmp_path) as labelled:
        labelled.read_units(MLP_MAX.column, 0, 1)
        query = load_sql("activation_block", column=MLP_MAX.column)
        plan = labelled._connection.execute(f"EXPLAIN (FORMAT json) {query}").fetchall()[0][1]
    assert plan.index("READ_PARQUET") < plan.index("labelled_samples")


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2GB", 2 * 10**9), ("512 MiB", 512 << 20), ("1.5GiB", 3 << 29)]
)
def test_memory_limits_are_read_as_duckdb_reads_them(tmp_path, text, n_bytes):
    """Our reading of a limit is DuckDB's: decimal units without the i, binary with it."""
    assert parse_memory_limit(text) == n_bytes
    (found,) = connect(text, tmp_path).sql("SELECT current_setting('memory_limit')").fetchall()[0]
    number, unit = found.split()
    assert float(number) * (1 << {"MiB": 20, "GiB": 30}[unit]) == pytest.approx(n_bytes, rel=0.06)


def test_a_limit_without_a_unit_is_refused():
    """The error names the setting."""
    with pytest.raises(SettingsError, match="duckdb_memory_limit"):
        parse_memory_limit("2000")


def test_blocks_cover_every_unit_once():
    """Blocks are contiguous, cover all units and fit the share of memory."""
    blocks = list(split_units(1000, 20_000 * 8, 100 * 10**6))
    assert [unit for first, stop in blocks for unit in range(first, stop)] == list(range(1000))
    assert max(stop - first for first, stop in blocks) * 20_000 * 8 <= 25 * 10**6


OUT_OF_CORE = """
import sys
from pathlib import Path
from eigenshift.store.workspace import Workspace
from eigenshift.detection.neuron_statistics import compute_neuron_statistics
from tests.support.activation_shards import MLP_MAX
folder = Path(sys.argv[1])
files = sorted(folder.glob("summary-*.parquet"))
compute_neuron_statistics(files, "demo", 0, [MLP_MAX], "400MB", Workspace(folder / "out"))
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_more_values_than_memory_allows(tmp_path):
    """Over a gigabyte of values under a limit of 400 MB: right, and under a gigabyte of memory."""
    ids = [f"s{index:04d}" for index in range(2000)]
    values = np.random.default_rng(0).normal(size=(2000, 4096)).astype(np.float16)
    samples = write_samples(tmp_path / "samples.parquet", ids, alternate(2000))
    summary = summarise(
        write_shard(tmp_path / "shard.parquet", ids, [{MLP_MAX.column: values}]), samples
    )
    n_shards = 70
    for number in range(n_shards):
        (tmp_path / f"summary-{number:02d}.parquet").hardlink_to(summary)
    assert n_shards * values.nbytes > 1 << 30
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_CORE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert int(done.stdout) * 1024 < 1 << 30
    found = pq.read_table(tmp_path / "out" / "neurons.parquet")
    labels = np.array(alternate(2000), bool)
    aurocs = [compare_values(unit, labels).auroc for unit in values.T[::512]]
    np.testing.assert_allclose(found["auroc"].to_numpy()[::512], aurocs, rtol=0, atol=1e-15)
    assert set(found["n_toxic"].to_pylist()) == {n_shards * labels.sum()}
