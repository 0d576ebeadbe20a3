"""The audit views: their names, their columns, and the SQL that makes them.

Adding a table is one entry in `FILE_TABLES`: the stage that writes it and the table. It is then a
view, completed in the shell, exported, and in the data dictionary. Views made from records (runs,
artifacts, ...) and those that join tables have SQL of their own in `DERIVED_VIEWS`. How a
connection gets them is `connections.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from eigenshift.audit import record_schemas
from eigenshift.base import schemas
from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, SINGULAR_ARMS
from eigenshift.base.schemas import describe_column
from eigenshift.benchmarks import stages as benchmarks
from eigenshift.components import stages as components
from eigenshift.datasets import stages as datasets
from eigenshift.detection import stages as detection
from eigenshift.evaluation import stages as evaluation
from eigenshift.generation import stages as generation
from eigenshift.patches import stages as patches
from eigenshift.stages import tables
from eigenshift.stages.stage import Stage
from eigenshift.stages.tables import Table
from eigenshift.toxicity import stages as toxicity

UNNAMED_ARM = "unnamed"
"""Arm of continuations made with a patch that the run's record does not list."""

RUN_ID = describe_column("run_id", pa.string(), "Run that made or found these rows")
FINGERPRINT = describe_column("fingerprint", pa.string(), "Artifact the row is stored in")


@dataclass(frozen=True)
class FileTable:
    """Parquet files of one kind of artifact, read as one table.

    Attributes:
        stage: That writes them.
        table: One of its tables.
        key: Says whose rows these are: "run_id" once per run that used them, "fingerprint" once
            per artifact, whoever used it.
        is_view: Shown under its own name; else in the schema `internal`, a part of derived views.
        is_unlabelled: Only artifacts that the run used without a label: those with one are a
            search's trials, not what the run chose.
    """

    stage: Stage[Any, Any]
    table: Table
    key: Literal["run_id", "fingerprint"] = "run_id"
    is_view: bool = True
    is_unlabelled: bool = False

    @property
    def kind(self) -> str:
        """Of the artifacts that hold them."""
        return self.stage.kind

    @property
    def prefix(self) -> str:
        """Beginning of the files' names."""
        return self.table.prefix

    @property
    def schema(self) -> pa.Schema:
        """What the table has even where there are no files."""
        return self.table.expect(pa.schema([]))

    @property
    def view_schema(self) -> pa.Schema:
        """Columns of the view."""
        before = [RUN_ID] if self.key == "run_id" else []
        return pa.schema([*before, *self.schema, FINGERPRINT])


@dataclass(frozen=True)
class DerivedView:
    """A view with SQL of its own.

    Attributes:
        schema: Its columns.
        sql: Over `internal.*`.
        tables: Names of the file tables it reads.
        kinds: Kinds of artifacts whose manifests it reads; None for all.
    """

    schema: pa.Schema
    sql: str
    tables: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = ()


FILE_TABLES: dict[str, FileTable] = {
    "samples": FileTable(datasets.INGEST_SOURCE, tables.SAMPLES, "fingerprint"),
    "rejected_rows": FileTable(datasets.INGEST_SOURCE, tables.REJECTED_ROWS, "fingerprint"),
    "source_files": FileTable(datasets.INGEST_SOURCE, tables.SOURCE_FILES, "fingerprint"),
    "neurons": FileTable(detection.COMPUTE_NEURON_STATISTICS, tables.NEURONS),
    "neuron_stability": FileTable(detection.COMPUTE_NEURON_STABILITY, tables.NEURON_STABILITY),
    "layers": FileTable(detection.COMPUTE_LAYER_STATISTICS, tables.LAYERS),
    "layer_transfers": FileTable(detection.COMPUTE_LAYER_TRANSFERS, tables.LAYER_TRANSFERS),
    "singular_components": FileTable(
        components.SCORE_COMPONENTS, tables.COMPONENTS, is_view=False, is_unlabelled=True
    ),
    "component_contexts": FileTable(
        components.SCORE_COMPONENTS, tables.COMPONENT_CONTEXTS, is_unlabelled=True
    ),
    "fisher_components": FileTable(
        patches.FIND_FISHER_COMPONENTS, tables.FISHER_COMPONENTS, is_view=False
    ),
    "arm_pairs": FileTable(evaluation.COMPARE_ARMS, tables.ARM_PAIRS),
    "intervention_choices": FileTable(evaluation.CHOOSE_INTERVENTION, tables.INTERVENTION_CHOICES),
    "evaluations": FileTable(evaluation.COMPARE_ARMS, tables.EVALUATIONS),
    "comparisons": FileTable(evaluation.TABULATE_ARMS, tables.COMPARISONS),
    "trials": FileTable(evaluation.CONFIRM_TRIALS, tables.TRIALS),
    "predicted_rates": FileTable(evaluation.PREDICT_TRIALS, tables.PREDICTED_RATES),
    "continuations": FileTable(
        generation.GENERATE_CONTINUATIONS, tables.CONTINUATIONS, is_view=False
    ),
    "scores": FileTable(toxicity.SCORE_CONTINUATIONS, tables.SCORES, is_view=False),
    "further": FileTable(toxicity.SCORE_FURTHER, tables.SCORES, is_view=False),
    "scorer_agreement": FileTable(evaluation.COMPARE_SCORERS, tables.SCORER_AGREEMENT),
    "benchmarks": FileTable(benchmarks.COMPARE_ANSWERS, tables.BENCHMARKS),
    "answers": FileTable(benchmarks.ANSWER_QUESTIONS, tables.BENCHMARK_ANSWERS, is_view=False),
    "scorer_quality": FileTable(evaluation.MEASURE_SCORERS, tables.SCORER_QUALITY),
    "confirmations": FileTable(evaluation.CONFIRM_AT_LENGTH, tables.CONFIRMATIONS),
    "survival": FileTable(evaluation.MEASURE_SURVIVAL, tables.SURVIVAL),
    "token_shifts": FileTable(evaluation.MEASURE_TOKEN_SHIFTS, tables.TOKEN_SHIFTS),
}

GENERATIONS = pa.schema(
    [
        RUN_ID,
        describe_column("arm", pa.string(), "Arm of the comparison; base is the unpatched model"),
        describe_column("part", pa.string(), "selection or evaluation"),
        *(
            schemas.CONTINUATIONS.field(name)
            for name in ("prompt_id", "sample_index", "language", "prompt", "continuation")
        ),
        describe_column("n_tokens", pa.int64(), "Tokens generated"),
        *(schemas.SCORES.field(name) for name in ("scorer", "toxicity_probability")),
        *(schemas.SCORES.field(name) for name in ("status", "reason")),
        FINGERPRINT,
    ]
)

COMPONENTS = pa.schema(
    [
        RUN_ID,
        describe_column("basis", pa.string(), "singular: of the head; fisher: of a Fisher patch"),
        describe_column(
            "is_in_patch", pa.bool_(), "The patch that the run's gate judged consists of it"
        ),
        *schemas.COMPONENTS,
        *(
            field
            for field in schemas.FISHER_COMPONENTS
            if field.name not in schemas.COMPONENTS.names
        ),
        FINGERPRINT,
    ]
)
"""What is of one basis only is null in the other."""

FURTHER_SCORES = pa.schema(
    [
        RUN_ID,
        *(GENERATIONS.field(name) for name in ("arm", "part")),
        *schemas.SCORES,
        FINGERPRINT,
    ]
)

BENCHMARK_ANSWERS = pa.schema(
    [
        RUN_ID,
        describe_column("arm", pa.string(), "Arm that answered; base is the unpatched model"),
        *schemas.BENCHMARK_ANSWERS,
        FINGERPRINT,
    ]
)

USES_SQL = """
SELECT run_id, kind, fingerprint, arg_min(stage, place) AS stage,
  string_agg(label, ', ' ORDER BY place) AS label, bool_or(label IS NULL) AS is_unlabelled,
  bool_and(was_cached) AS was_cached,
  round(sum(elapsed_seconds), 3) AS elapsed_seconds, sum(requests)::BIGINT AS requests,
  sum(retries)::BIGINT AS retries, sum(bytes_read)::BIGINT AS bytes_read,
  sum(bytes_written)::BIGINT AS bytes_written
FROM (
  SELECT run_id, kind, fingerprint, label, min(place) AS place, arg_min(stage, place) AS stage,
    bool_and(was_cached) AS was_cached, sum(elapsed_seconds) AS elapsed_seconds,
    sum(requests) AS requests, sum(retries) AS retries, sum(bytes_read) AS bytes_read,
    sum(bytes_written) AS bytes_written
  FROM (
    SELECT run_id, unnest(artifacts, recursive := true),
      unnest(range(len(artifacts))) AS place
    FROM internal.run_records
  ) GROUP BY run_id, kind, fingerprint, label
) GROUP BY run_id, kind, fingerprint
"""
"""A stage may meet one artifact several times in a run, e.g. one shard for two arms."""

_ARTIFACTS = """
SELECT u.run_id, u.stage, u.kind, u.label, u.fingerprint,
  {base_uri} || u.kind || '/' || u.fingerprint AS uri, len(m.files) AS n_files,
  m.rows, m.bytes, m.sha256, u.was_cached, u.elapsed_seconds, u.requests, u.retries, u.bytes_read,
  u.bytes_written, m.created_at, m.step_version, m.inputs, m.settings, m.facts, m.versions
FROM internal.uses u JOIN internal.manifests m USING (kind, fingerprint)
"""

_PATCHES = f"""
SELECT u.run_id, unnest(string_split(coalesce(u.label, '{UNNAMED_ARM}'), ', ')) AS arm,
  m.facts->>'$.intervention' AS intervention,
  CAST(m.facts->>'$.n_components' AS BIGINT) AS n_components,
  CAST(m.facts->>'$.n_units' AS BIGINT) AS n_units,
  CAST(coalesce(len(json_keys(m.facts, '$.ranks')), 0) AS BIGINT) AS n_linears,
  CAST(m.facts->>'$.factor' AS DOUBLE) AS factor, m.facts->>'$.model_digest' AS model_digest,
  m.facts->>'$.base_digest' AS base_digest, m.facts->>'$.patched_digest' AS patched_digest,
  u.fingerprint, {{base_uri}} || u.kind || '/' || u.fingerprint AS uri
FROM internal.uses u JOIN internal.manifests m USING (kind, fingerprint)
WHERE u.kind = 'patch'
"""

_RUNS = "SELECT * EXCLUDE (artifacts) FROM internal.run_records"

_RELEASES = """
SELECT *, version = max(version) OVER (PARTITION BY model_id) AS is_current
FROM internal.release_records
"""

_ARMS = f"""
sources AS (
  SELECT fingerprint AS owner, settings, unnest(sources, recursive := true)
  FROM internal.manifests WHERE kind = 'continuations'
),
parts AS (
  SELECT owner, any_value(regexp_replace(file, '-[^-]*$', '')) AS part FROM sources
  WHERE kind = 'prompts' AND file IS NOT NULL GROUP BY owner
),
patches AS (SELECT owner, fingerprint FROM sources WHERE kind = 'patch'),
labels AS (
  SELECT run_id, fingerprint, unnest(string_split(label, ', ')) AS label FROM internal.uses
  WHERE kind = 'patch' AND label IS NOT NULL
),
unpatched AS (
  SELECT owner, CASE WHEN any_value(settings)->>'$.stream' = 'again' THEN '{AGAIN_ARM}'
    ELSE '{BASE_ARM}' END AS arm
  FROM sources GROUP BY owner HAVING count(*) FILTER (kind = 'patch') = 0
),
arms AS (
  SELECT DISTINCT u.run_id, u.fingerprint,
    CASE WHEN n.arm IS NOT NULL THEN n.arm ELSE coalesce(l.label, '{UNNAMED_ARM}') END AS arm
  FROM internal.uses u
  LEFT JOIN unpatched n ON n.owner = u.fingerprint
  LEFT JOIN patches p ON p.owner = u.fingerprint
  LEFT JOIN labels l ON l.run_id = u.run_id AND l.fingerprint = p.fingerprint
  WHERE u.kind = 'continuations'
)
"""
"""Arm and part of the prompts of each run's continuations."""

_JUDGED = """
judged AS (
  SELECT s.*, m.continuations FROM internal.{table} s JOIN (
    SELECT DISTINCT fingerprint, source.fingerprint AS continuations
    FROM (SELECT fingerprint, unnest(sources) AS source FROM internal.manifests
          WHERE kind = '{kind}')
    WHERE source.kind = 'continuations'
  ) m USING (fingerprint)
)
"""
"""Scores with the continuations they are about."""

_GENERATIONS = f"""
WITH {_ARMS}, {_JUDGED.format(table="scores", kind="scores")}
SELECT c.run_id, a.arm, p.part, c.prompt_id, c.sample_index, c.language, c.prompt, c.continuation,
  len(c.token_ids) AS n_tokens, j.scorer, j.toxicity_probability,
  coalesce(j.status, 'unscored') AS status,
  CASE WHEN j.status IS NULL THEN 'the run ended before scoring' ELSE j.reason END AS reason,
  c.fingerprint
FROM internal.continuations c
JOIN arms a USING (run_id, fingerprint)
LEFT JOIN parts p ON p.owner = c.fingerprint
LEFT JOIN judged j ON j.run_id = c.run_id AND j.continuations = c.fingerprint
  AND j.prompt_id = c.prompt_id AND j.sample_index = c.sample_index
"""

_FURTHER_SCORES = f"""
WITH {_ARMS}, {_JUDGED.format(table="further", kind="further_scores")}
SELECT j.run_id, a.arm, p.part, j.* EXCLUDE (run_id, fingerprint, continuations), j.fingerprint
FROM judged j
JOIN arms a ON a.run_id = j.run_id AND a.fingerprint = j.continuations
LEFT JOIN parts p ON p.owner = j.continuations
"""

_COMPONENTS = f"""
WITH labels AS (
  SELECT run_id, kind, fingerprint, unnest(string_split(label, ', ')) AS label
  FROM internal.uses WHERE kind = 'patch'
),
read AS (
  SELECT run_id, intervention, unnest(sources, recursive := true) FROM (
    SELECT r.run_id, m.facts->>'$.intervention' AS intervention, m.sources
    FROM labels l
    JOIN internal.run_records r ON r.run_id = l.run_id AND r.judged = l.label
    JOIN internal.manifests m USING (kind, fingerprint)
  )
)
SELECT {", ".join(COMPONENTS.names)} FROM (
  SELECT 'singular' AS basis,
    is_selected AND (run_id, fingerprint) IN (
      SELECT (run_id, fingerprint) FROM read
      WHERE kind = 'components' AND intervention IN {SINGULAR_ARMS}
    ) AS is_in_patch, *
  FROM internal.singular_components
  UNION ALL BY NAME
  SELECT 'fisher' AS basis, true AS is_selected, component_index AS rank,
    (run_id, fingerprint) IN (
      SELECT (run_id, fingerprint) FROM read WHERE kind = 'fisher_components'
    ) AS is_in_patch, *
  FROM internal.fisher_components
)
"""
"""What the judged patch was built from is in its manifest."""

_BENCHMARK_ANSWERS = """
SELECT a.run_id, unnest(string_split(u.label, ', ')) AS arm,
  a.* EXCLUDE (run_id, fingerprint), a.fingerprint
FROM internal.answers a JOIN internal.uses u USING (run_id, fingerprint)
WHERE u.kind = 'benchmark_answers'
"""

DERIVED_VIEWS: dict[str, DerivedView] = {
    "runs": DerivedView(record_schemas.RUNS, _RUNS),
    "artifacts": DerivedView(record_schemas.ARTIFACTS, _ARTIFACTS, kinds=None),
    "patches": DerivedView(record_schemas.PATCHES, _PATCHES, kinds=("patch",)),
    "releases": DerivedView(record_schemas.RELEASES, _RELEASES),
    "generations": DerivedView(GENERATIONS, _GENERATIONS, ("continuations", "scores")),
    "further_scores": DerivedView(FURTHER_SCORES, _FURTHER_SCORES, ("continuations", "further")),
    "benchmark_answers": DerivedView(BENCHMARK_ANSWERS, _BENCHMARK_ANSWERS, ("answers",)),
    "components": DerivedView(
        COMPONENTS, _COMPONENTS, ("singular_components", "fisher_components"), ("patch",)
    ),
}

VIEW_SCHEMAS: dict[str, pa.Schema] = {
    **{name: view.schema for name, view in DERIVED_VIEWS.items()},
    **{name: table.view_schema for name, table in FILE_TABLES.items() if table.is_view},
}
"""Columns of every view, by the view's name."""

VIEW_NAMES: tuple[str, ...] = tuple(VIEW_SCHEMAS)
"""Every view of the contract (how-it-works.md section 6), and more."""


def list_tables(view: str) -> tuple[str, ...]:
    """Names of the file tables behind a view."""
    return DERIVED_VIEWS[view].tables if view in DERIVED_VIEWS else (view,)


def list_kinds(view: str) -> tuple[str, ...] | None:
    """Kinds of artifacts whose manifests a view needs; None for all."""
    kinds = DERIVED_VIEWS[view].kinds if view in DERIVED_VIEWS else ()
    if kinds is None:
        return None
    return (*kinds, *(FILE_TABLES[table].kind for table in list_tables(view)))
