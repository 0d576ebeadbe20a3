"""The audit views, what a query may not do, and how text is hidden."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import (
    HIDDEN_TEXT,
    VIEW_NAMES,
    AuditSession,
    connect,
    encode_table,
    find_named_columns,
    open_audit,
)
from eigenshift.audit.statements import explain
from eigenshift.base import schemas
from eigenshift.base.errors import AuditError, EigenShiftError, SettingsError
from eigenshift.ledger.runs import finish_run, start_run, write_run
from eigenshift.store.manifests import MANIFEST_NAME
from eigenshift.store.workspace import Workspace
from tests.support.small_store import SmallStore, build_small_store, make_settings

CONTRACT = {
    "runs": "run_id, started_at, finished_at, status, model_id, model_digest, settings,"
    " code_version",
    "artifacts": "run_id, kind, fingerprint, uri, rows, bytes, sha256, was_cached,"
    " elapsed_seconds, inputs",
    "samples": "sample_id, dataset, split, language, is_toxic, text, source_uri, source_row",
    "rejected_rows": "dataset, source_uri, source_row, reason",
    "neurons": "run_id, dataset, layer, site, neuron_index, auroc, average_precision, mean_toxic,"
    " mean_nontoxic, cohens_d, n_toxic, n_nontoxic",
    "layers": "run_id, dataset, layer, site, probe_auroc, probe_auroc_low, probe_auroc_high,"
    " best_neuron_auroc, mean_neuron_auroc",
    "components": "run_id, basis, is_in_patch, component_index, sigma, delta, effect_size, auroc,"
    " logit_gain, is_selected, factor, tokens_up, tokens_down",
    "patches": "run_id, intervention, n_components, factor, base_digest, patched_digest, uri",
    "evaluations": "run_id, arm, scorer, metric, value, low, high, n",
    "generations": "run_id, arm, prompt_id, sample_index, prompt, continuation, scorer,"
    " toxicity_probability, status",
    "releases": "model_id, version, run_id, action, released_at, reason",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def session(small: SmallStore) -> AuditSession:
    """A session on it."""
    return open_audit(small.url)


def ask(session: AuditSession, sql: str) -> list[tuple[object, ...]]:
    """Rows of an answer as tuples."""
    return [tuple(row.values()) for row in session.query(sql).to_pylist()]


@pytest.mark.parametrize("view", CONTRACT)
def test_view_has_the_columns_of_the_contract(session: AuditSession, view: str) -> None:
    """Each view of how-it-works.md section 6 is there, with its key columns and rows."""
    assert session.query(f"SELECT {CONTRACT[view]} FROM {view}").num_rows > 0


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_view_of_an_empty_store_has_the_same_columns_and_types(
    small: SmallStore, tmp_path: Path, view: str
) -> None:
    """A store whose only run has no artifacts yet answers with no rows, not with an error."""
    with open_audit(build_empty_run(str(tmp_path / "new"))) as empty, open_audit(small.url) as full:
        found = empty.query(f"SELECT * FROM {view}", show_text=True)
        expected = full.query(f"SELECT * FROM {view}", show_text=True)
    assert found.num_rows == (1 if view == "runs" else 0)
    assert found.schema.names == expected.schema.names
    assert [str(t) for t in found.schema.types] == [str(t) for t in expected.schema.types]


def test_a_place_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """Empty tables would look like a store without results; folders of other tools are none."""
    (tmp_path / "runs" / "events").mkdir(parents=True)
    (tmp_path / "runs" / "events" / "a.bin").write_bytes(b"")
    with pytest.raises(SettingsError, match="expected a store of EigenShift, found no runs"):
        connect(str(tmp_path))
    for url in (str(tmp_path), str(tmp_path / "none"), "memory://nowhere-at-all"):
        with open_audit(url) as session, pytest.raises(SettingsError, match="Check --store"):
            session.query("SELECT count(*) FROM layers")


def test_run_that_failed_early_is_seen(tmp_path: Path) -> None:
    """A run without artifacts is in `runs` with its error, and every view answers."""
    url = str(tmp_path)
    store = build_empty_run(url)
    with open_audit(url) as session:
        assert ask(session, "SELECT status, error FROM runs") == [("failed", "gone")]
        for view in VIEW_NAMES:
            assert session.query(f"SELECT count(*) FROM {view}").num_rows == 1
    assert store == url


def build_empty_run(url: str) -> str:
    """A store whose only run failed before its first stage."""
    from eigenshift.store.storage import Store

    record = start_run("refresh", make_settings(url))
    finish_run(record, "failed", "gone")
    write_run(Store(url), record)
    return url


def test_samples_are_not_repeated_by_runs_that_share_them(
    small: SmallStore, tmp_path: Path
) -> None:
    """A second run over the same artifacts adds rows to `artifacts`, none to `samples`."""
    small = small.copy_to(tmp_path / "store")
    sql = "SELECT count(*) FROM samples"
    per_run = "SELECT count(*), count(DISTINCT run_id) FROM generations"
    with open_audit(small.url) as session:
        before, generations = ask(session, sql), ask(session, per_run)
    small.add_run()
    with open_audit(small.url) as session:
        assert ask(session, sql) == before == [(30,)]
        assert ask(session, per_run) == [(2 * generations[0][0], 2)]
        rows = ask(session, "SELECT DISTINCT was_cached FROM artifacts ORDER BY 1")
    assert rows == [(False,), (True,)]


def test_components_of_trials_are_not_those_a_run_chose(small: SmallStore, tmp_path: Path) -> None:
    """Tables of a search's factors, one of which is the run's own again, add no rows."""
    copy = small.copy_to(tmp_path / "store")
    search = copy.add_run("tune", "finished")
    own = next(use for use in search.artifacts if use.kind == "components")
    search.artifacts.append(own.model_copy(update={"label": "factor=0"}))
    rows = copy.artifacts.open(copy.references["components"]).read_table("components.parquet")
    rows = rows.set_column(
        rows.column_names.index("is_selected"), "is_selected", pa.array([True] * len(rows))
    )
    copy.add_artifact(
        search,
        "components",
        lambda w: w.write_table("components.parquet", rows, schemas.COMPONENTS),
        "factor=0.5",
    )
    with open_audit(copy.url) as session:
        found = session.query(
            "SELECT count(*) AS n, count(*) FILTER (is_selected) AS n_damped FROM components "
            f"WHERE run_id = '{search.run_id}'"
        )
        labels = session.query(
            f"SELECT label FROM artifacts WHERE run_id = '{search.run_id}' AND kind = 'components'"
        )
    assert found.to_pylist() == [{"n": 32, "n_damped": 2}]
    assert sorted(labels["label"].to_pylist()) == ["factor=0", "factor=0.5"]


def test_row_accounting_holds(session: AuditSession) -> None:
    """Rows read = samples + rejected rows, for every source file."""
    sql = """
    SELECT source_uri, rows_read,
      (SELECT count(*) FROM samples s WHERE s.source_uri = f.source_uri
         AND s.fingerprint = f.fingerprint)
      + (SELECT count(*) FROM rejected_rows r WHERE r.source_uri = f.source_uri
         AND r.fingerprint = f.fingerprint) AS accounted
    FROM source_files f ORDER BY source_uri
    """
    rows = ask(session, sql)
    assert [row[1:] for row in rows] == [(12, 12), (11, 11), (10, 10)]


def test_generations_name_arm_part_and_unscored_rows(session: AuditSession) -> None:
    """Arms come from the run's record; an unscored continuation is kept with its reason."""
    sql = "SELECT arm, part, count(*) FROM generations GROUP BY ALL ORDER BY ALL"
    assert ask(session, sql) == [
        ("base", "evaluation", 24),
        ("base", "selection", 24),
        ("base_again", "evaluation", 24),
        ("eigenshift", "evaluation", 24),
        ("random_components", "evaluation", 24),
    ]
    sql = "SELECT DISTINCT toxicity_probability, reason FROM generations WHERE status = 'unscored'"
    assert ask(session, sql) == [(None, "blank text")]


def test_continuations_never_scored_are_unscored(small: SmallStore, tmp_path: Path) -> None:
    """Where a run ended between generation and scoring, its continuations say so."""
    small = small.copy_to(tmp_path / "store")
    for path in (tmp_path / "store" / "artifacts" / "scores").glob(f"*/{MANIFEST_NAME}"):
        path.unlink()
    with open_audit(small.url) as session:
        rows = ask(session, "SELECT DISTINCT status, scorer, reason FROM generations")
    assert rows == [("unscored", None, "the run ended before scoring")]


def test_patches_and_release_point_at_each_other(session: AuditSession, small: SmallStore) -> None:
    """The release in force leads to its patch, with number of components and factor."""
    sql = (
        "SELECT p.arm, p.n_components, p.factor, r.action, r.is_current FROM releases r "
        "JOIN patches p ON p.fingerprint = r.patch_fingerprint AND p.run_id = r.run_id"
    )
    assert ask(session, sql) == [("eigenshift", 2, 0.0, "promote", True)]


def test_patches_tell_what_they_change(small: SmallStore, tmp_path: Path) -> None:
    """Directions, units and linear layers; a patch of before there were such has none."""
    small = small.copy_to(tmp_path / "store")

    def write(workspace: Workspace) -> None:
        workspace.facts = {"intervention": "deep", "n_components": 0, "n_units": 4}
        workspace.facts["ranks"] = {"model.layers.0.fc2": 2, "model.layers.11.fc2": 1}

    small.add_artifact(small.record, "patch", write, label="deep")
    with open_audit(small.url) as session:
        sql = "SELECT arm, n_components, n_units, n_linears FROM patches ORDER BY arm"
        found = ask(session, sql)
    assert found[0] == ("deep", 0, 4, 2)
    assert found[1:] == [("eigenshift", 2, None, 0), ("random_components", 2, None, 0)]


def test_artifact_without_manifest_is_invisible(small: SmallStore, tmp_path: Path) -> None:
    """A half-written artifact gives no rows anywhere."""
    small = small.copy_to(tmp_path / "store")
    folder = Path(small.url) / small.references["components"].folder
    (folder / MANIFEST_NAME).unlink()
    with open_audit(small.url) as session:
        assert ask(session, "SELECT count(*) FROM components") == [(0,)]
        assert ask(session, "SELECT count(*) FROM artifacts WHERE kind = 'components'") == [(0,)]


def test_only_views_named_are_read(small: SmallStore, tmp_path: Path) -> None:
    """A damaged file matters to the views over it only, and is named."""
    small = small.copy_to(tmp_path / "store")
    small.find_file("components", "components.parquet").unlink()
    with open_audit(small.url) as session:
        assert ask(session, "SELECT count(*) FROM runs") == [(1,)]
        with pytest.raises(EigenShiftError, match=r"components\.parquet"):
            session.query("SELECT * FROM components")


def test_truncated_file_is_an_error_that_points_to_verify(
    small: SmallStore, tmp_path: Path
) -> None:
    """A file that is no Parquet any more gives no numbers."""
    small = small.copy_to(tmp_path / "store")
    small.find_file("layers-0", "layers.parquet").write_bytes(b"PAR1 not any more")
    with open_audit(small.url) as session, pytest.raises(AuditError, match="eigenshift verify"):
        session.query("SELECT * FROM layers")


def test_remote_store_gives_the_same_answers(small: SmallStore) -> None:
    """A store that is not local is copied file by file, through its digests."""
    remote = build_small_store("memory://audit-remote")
    sql = "SELECT arm, metric, slice, value FROM evaluations ORDER BY ALL"
    with open_audit(small.url) as here, open_audit(remote.url) as there:
        assert ask(there, sql) == ask(here, sql)


def test_store_path_with_glob_characters(small: SmallStore, tmp_path: Path) -> None:
    """A folder name with *, ? or [ is a name, not a pattern."""
    odd = tmp_path / "it's *a* [store]?"
    shutil.copytree(small.url, odd)
    with open_audit(str(odd)) as session:
        assert ask(session, "SELECT count(*) FROM samples") == [(30,)]


def test_sql_error_keeps_the_message_of_the_database(session: AuditSession) -> None:
    """A wrong column is answered with the candidates, a wrong table with the views."""
    with pytest.raises(AuditError, match="run_id"):
        session.query("SELECT run_idd FROM runs")
    with pytest.raises(AuditError, match="Views: runs"):
        session.query("SELECT * FROM run")


@pytest.mark.parametrize(
    "sql", ["DESCRIBE samples", "SUMMARIZE layers", "SHOW TABLES", "EXPLAIN SELECT * FROM runs"]
)
def test_questions_about_the_views_are_answered(session: AuditSession, sql: str) -> None:
    """DESCRIBE, SUMMARIZE, SHOW and EXPLAIN read only."""
    assert session.query(sql).num_rows > 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM generations",
        "SELECT g FROM generations g",
        "SELECT to_json(g) FROM generations g",
        "SELECT COLUMNS('pro.*|cont.*') FROM generations",
        "SELECT * FROM generations AS g(a, b, c, d, e, f, h, i)",
        "SELECT #8 FROM (FROM generations)",
        "SUMMARIZE generations",
        "SELECT * FROM generations WHERE arm <> 'prompt continuation' -- prompt, continuation",
        "SELECT *, is_toxic::text, CAST(source_row AS text), dataset AS text FROM samples",
        "SELECT * FROM main.samples",
        "SELECT list(c) FROM components c",
        "SELECT * FROM query('SELECT * FROM generations')",
    ],
)
def test_text_is_hidden_unless_named(session: AuditSession, sql: str) -> None:
    """No spelling brings out a text column that the SQL does not name."""
    encoded = encode_table(session.query(sql), "json").decode()
    assert "text hidden" in encoded
    assert not any(word in encoded for word in ("platform", "kettle", "On day"))


def test_named_text_is_shown_and_null_stays_null(session: AuditSession) -> None:
    """A column named in the SQL, in any case or quoting, is shown; others stay hidden."""
    (row,) = session.query('SELECT "PROMPT", * FROM generations LIMIT 1').to_pylist()
    assert row["prompt"].startswith("On day")
    assert row["continuation"] == HIDDEN_TEXT
    sql = "SELECT * FROM (SELECT * REPLACE (NULL AS attributes) FROM samples) LIMIT 1"
    (row,) = session.query(sql).to_pylist()
    assert (row["attributes"], row["text"]) == (None, HIDDEN_TEXT)


def test_show_text_shows_all(session: AuditSession) -> None:
    """The option shows what the query does not name, lists included."""
    (row,) = session.query("SELECT * FROM components LIMIT 1", show_text=True).to_pylist()
    assert row["tokens_up"] == [" kettle", " <b>"]
    (row,) = session.query("SELECT * FROM components LIMIT 1").to_pylist()
    assert row["tokens_up"] == [HIDDEN_TEXT]


def test_named_columns_are_found_in_other_scripts() -> None:
    """Token places are bytes: text before a name does not shift it."""
    sql = "SELECT '茶茶茶茶', s.Text FROM samples s"
    assert find_named_columns(sql) == {"text"}


def test_error_while_reading_text_does_not_quote_it(session: AuditSession) -> None:
    """A failed cast of a text column must not carry the text into the message."""
    for sql in ("SELECT text::INTEGER FROM samples", "SELECT error(text) FROM samples"):
        with pytest.raises(AuditError, match="withheld") as caught:
            session.query(sql)
        assert "kettle" not in str(caught.value)


def test_repeated_column_names_are_told_apart(session: AuditSession) -> None:
    """Two columns of one name do not overwrite each other."""
    row = session.query("SELECT 1 AS a, 2 AS a").to_pylist()[0]
    assert row == {"a": 1, "a_1": 2}


def test_json_is_one_array_in_utf8(session: AuditSession) -> None:
    """NaN and infinities become null; times, lists and big sums have a form."""
    table = session.query(
        "SELECT 'nan'::DOUBLE AS n, 1/0 AS i, '茶' AS t, [1.5, NULL] AS l, sum(3) AS s, "
        "TIMESTAMP '2026-01-02' AS m, {'a': 1} AS d, 'x'::BLOB AS b"
    )
    data = encode_table(table, "json")
    assert data.endswith(b"]\n")
    assert json.loads(data) == [
        {
            "n": None,
            "i": None,
            "t": "茶",
            "l": [1.5, None],
            "s": 3,
            "m": "2026-01-02T00:00:00",
            "d": {"a": 1},
            "b": "78",
        }
    ]


def test_csv_has_a_header_and_nested_values_as_json(session: AuditSession) -> None:
    """CSV reads back row by row."""
    table = session.query("SELECT component_index, tokens_up FROM components ORDER BY 1 LIMIT 2")
    rows = list(csv.reader(io.StringIO(encode_table(table, "csv").decode())))
    assert rows[0] == ["component_index", "tokens_up"]
    assert json.loads(rows[1][1]) == [" kettle", " <b>"]


def test_parquet_reads_back(session: AuditSession) -> None:
    """Parquet keeps types, also of an empty result."""
    table = session.query("SELECT * FROM layers LIMIT 0")
    assert pq.read_table(io.BytesIO(encode_table(table, "parquet"))).schema.names == [
        "run_id",
        *schemas.LAYERS.names,
        "fingerprint",
    ]


@pytest.mark.parametrize("table_format", ["csv", "json", "parquet"])
def test_intervals_are_text_in_every_format(session: AuditSession, table_format: str) -> None:
    """None of them has a form for months and days; what has none at all is said."""
    table = session.query("SELECT INTERVAL '1 month 2 days' AS i, [INTERVAL 1 DAY] AS l, NULL AS n")
    assert b"1 month 2 days" in encode_table(table, table_format)
    odd = pa.table({"odd": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])})
    if table_format == "parquet":
        with pytest.raises(AuditError, match="Cast it in the SQL"):
            encode_table(odd, table_format)


def test_unknown_format_is_refused(session: AuditSession) -> None:
    """The message lists the formats."""
    with pytest.raises(AuditError, match="csv, json or parquet"):
        encode_table(session.query("SELECT 1"), "xml")


@pytest.mark.parametrize(
    "expression", ["5 % 0", "mod(5, 0)", "layer // (layer - layer)", "5.0 % (layer - layer)"]
)
def test_a_division_by_zero_is_answered_with_what_can_be_done(
    session: AuditSession, expression: str
) -> None:
    """DuckDB advises to change a setting; those are locked, while TRY is at hand and works."""
    with pytest.raises(AuditError) as refused:
        session.query(f"SELECT {expression} AS share FROM layers")
    message = str(refused.value)
    assert "Use TRY(...) to return NULL" in message
    assert "error_on_division_by_zero" not in message
    assert "Settings are locked here" in message
    answer = session.query(f"SELECT TRY({expression}) AS share FROM layers LIMIT 1")
    assert answer["share"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Too many columns. Use SET pivot_limit=X to have more.", "Too many columns."),
        (
            "No room.\n* Raise it (SET memory_limit='4GB')\n* Ask for less",
            "No room.\n* Ask for less",
        ),
        (
            "Deprecated.\nUse SET lambda_syntax='X' to have it.\nSee a page.",
            "Deprecated.\nSee a page.",
        ),
    ],
)
def test_advice_to_change_a_setting_is_left_out(given: str, told: str) -> None:
    """In whatever form DuckDB gives it."""
    assert explain(ValueError(given)) == f"{told}\nSettings are locked here: change the question."


def test_a_message_that_quotes_the_query_is_left_as_it_is() -> None:
    """`SET` may be the reader's own."""
    message = "Syntax error.\n\nLINE 1: SELECT 'SET x=1'"
    assert explain(ValueError(message)) == message


def test_notebook_connections_behave_as_documented(small: SmallStore) -> None:
    """docs/audit.md: no `fetchone` of a relation; a half-read result is in the way."""
    import duckdb

    connection = connect(small.url)
    with pytest.raises(AttributeError):
        connection.sql("SELECT 1").fetchone()
    assert connection.execute("SELECT range FROM range(10000000)").fetchone() == (0,)
    with pytest.raises(duckdb.Error, match="unfinished result"):
        connection.sql("SELECT 1").fetchall()
    assert connection.cursor().sql("SELECT count(*) FROM samples").fetchall() == [(30,)]
    connection.abort()
    assert connection.sql("SELECT 1").fetchall() == [(1,)]
    with pytest.raises(duckdb.Error, match="locked"):
        connection.cursor().execute("SET error_on_division_by_zero = false")
    with pytest.raises(duckdb.Error):
        connection.cursor().sql("FROM read_text('/etc/passwd')").fetchall()


def test_notebook_connection_hides_text_unless_asked(small: SmallStore) -> None:
    """`connect` gives all views, without reach to other files."""
    import duckdb

    connection = connect(small.url)
    (hidden,) = connection.sql("SELECT DISTINCT text FROM samples").fetchall()
    assert hidden[0].startswith("[text hidden")
    with pytest.raises(duckdb.Error):
        connection.sql("FROM read_text('/etc/passwd')").fetchall()
    shown = connect(small.url, show_text=True).sql("SELECT text FROM samples LIMIT 1").fetchall()
    assert shown[0][0].startswith("The kettle")
