"""Columns of the views that are made from records, not from tables of artifacts."""

from __future__ import annotations

import pyarrow as pa

from eigenshift.base.schemas import describe_column

TIME = pa.timestamp("us")
"""Times in the audit views are UTC."""

RUNS = pa.schema(
    [
        describe_column("run_id", pa.string(), "The run; begins with the time it started"),
        describe_column(
            "command",
            pa.string(),
            "refresh, compare, tune, detect, benchmark, survive or reproduce",
        ),
        describe_column("started_at", TIME, "When it started"),
        describe_column("finished_at", TIME, "When it ended; null while it runs"),
        describe_column(
            "status", pa.string(), "running, finished, promoted, held, suspended or failed"
        ),
        describe_column("model_id", pa.string(), "Model as named in the settings"),
        describe_column("model_digest", pa.string(), "sha256 of the model's weights"),
        describe_column("settings", pa.string(), "JSON: all settings of the run"),
        describe_column("code_version", pa.string(), "Version of this package"),
        describe_column("versions", pa.string(), "JSON: versions of the libraries"),
        describe_column("stages", pa.string(), "JSON: what each stage did, and its traffic"),
        describe_column("metrics", pa.string(), "JSON: headline numbers with intervals"),
        describe_column("checks", pa.string(), "JSON: the gate's checks, expected and found"),
        describe_column("caveats", pa.string(), "JSON: what limited the run before its work"),
        describe_column("judged", pa.string(), "Arm whose patch the gate judged"),
        describe_column("release", pa.string(), "Version of the release the run led to"),
        describe_column("error", pa.string(), "Why it failed, else null"),
        describe_column("collected_at", TIME, "When artifacts of it were garbage-collected"),
    ]
)

ARTIFACTS = pa.schema(
    [
        describe_column("run_id", pa.string(), "Run that made or found the artifact"),
        describe_column("stage", pa.string(), "Stage that made or found it"),
        describe_column("kind", pa.string(), "Kind of artifact"),
        describe_column("label", pa.string(), "What the run calls it: dataset, arm, ..."),
        describe_column("fingerprint", pa.string(), "Names it; digest of what it was made from"),
        describe_column("uri", pa.string(), "Folder of the artifact"),
        describe_column("n_files", pa.int64(), "Files it has"),
        describe_column("rows", pa.int64(), "Rows over all its tables"),
        describe_column("bytes", pa.int64(), "Size of all its files"),
        describe_column("sha256", pa.string(), "Over names and digests of its files"),
        describe_column("was_cached", pa.bool_(), "The run found it already made"),
        describe_column("elapsed_seconds", pa.float64(), "Time the run spent on it"),
        describe_column("requests", pa.int64(), "Requests to storage for it"),
        describe_column("retries", pa.int64(), "Requests that had to be made again"),
        describe_column("bytes_read", pa.int64(), "Bytes read from storage for it"),
        describe_column("bytes_written", pa.int64(), "Bytes written to storage for it"),
        describe_column("created_at", TIME, "When it was made"),
        describe_column("step_version", pa.int64(), "Version of the step that made it"),
        describe_column("inputs", pa.string(), "JSON: kind, fingerprint, file of each input"),
        describe_column("settings", pa.string(), "JSON: the settings the step read"),
        describe_column("facts", pa.string(), "JSON: what the step noted about it"),
        describe_column("versions", pa.string(), "JSON: versions of the libraries"),
    ]
)

PATCHES = pa.schema(
    [
        describe_column("run_id", pa.string(), "Run that made or found the patch"),
        describe_column("arm", pa.string(), "Arm of the comparison it stands for"),
        describe_column("intervention", pa.string(), "How its directions were chosen"),
        describe_column("n_components", pa.int64(), "Directions of the head it changes"),
        describe_column("n_units", pa.int64(), "Units of the trunk it scales"),
        describe_column("n_linears", pa.int64(), "Linear layers of the trunk it adds to"),
        describe_column("factor", pa.float64(), "Singular values are multiplied by it, 0 to 1"),
        describe_column("model_digest", pa.string(), "sha256 of the model's weights"),
        describe_column("base_digest", pa.string(), "sha256 of what it changes, before"),
        describe_column("patched_digest", pa.string(), "sha256 of what it changes, after"),
        describe_column("fingerprint", pa.string(), "The artifact that holds it"),
        describe_column("uri", pa.string(), "Folder of the artifact"),
    ]
)

RELEASES = pa.schema(
    [
        describe_column("model_id", pa.string(), "Model as named in the settings"),
        describe_column("version", pa.string(), "Name of the release; sorts by time"),
        describe_column("previous", pa.string(), "Release in force when it was made"),
        describe_column("run_id", pa.string(), "Run whose patch it puts in force"),
        describe_column("action", pa.string(), "promote or rollback"),
        describe_column("released_at", TIME, "When it was made"),
        describe_column("released_by", pa.string(), "Who decided: a name given, or user@host"),
        describe_column("reason", pa.string(), "Why"),
        describe_column("restores", pa.string(), "Of a rollback: the promotion put in force again"),
        describe_column("model_digest", pa.string(), "Base the patch was measured against"),
        describe_column("patch_fingerprint", pa.string(), "Its patch; null: the unpatched model"),
        describe_column("is_current", pa.bool_(), "In force now"),
    ]
)
