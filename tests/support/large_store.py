"""A store as after years of weekly refreshes: hundreds of runs, millions of neuron rows.

Written directly, without stages: manifests and run records have the form `ArtifactStore` and
`write_run` give them, and are sealed. All numbers are made up; there is no text.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base import schemas
from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.ledger.releases import Release
from eigenshift.ledger.runs import ArtifactUse, RunRecord, StageSummary
from eigenshift.store.manifests import FileRecord, InputRecord, Manifest, digest_columns
from eigenshift.store.storage import Store

N_LAYERS = 12
ARMS = (BASE_ARM, AGAIN_ARM, RANDOM_ARM, PATCHED_ARM)
FIRST_DAY = datetime(2024, 1, 1, tzinfo=timezone.utc)
MODEL = "org/model"


def name_run(number: int) -> str:
    """Id of a run, counted from 0."""
    return f"{FIRST_DAY + timedelta(days=number):%Y%m%dT%H%M%SZ}-{number:06x}"


def name_release(number: int) -> str:
    """Version of the release that an even run led to."""
    return f"{FIRST_DAY + timedelta(days=number):%Y%m%dT%H%M%S}.000000Z-{number:06x}"


def build_large_store(store_url: str, n_runs: int, n_neuron_rows: int, seed: int = 0) -> None:
    """Write the store; every run has artifacts of its own, samples are shared by ten runs.

    Args:
        store_url: Root URL, any scheme.
        n_runs: Refreshes; every other one is released.
        n_neuron_rows: Over all runs and their 12 layers.
        seed: Of the made-up numbers.
    """
    writer = _Writer(store_url, n_neuron_rows // (n_runs * N_LAYERS), seed)
    for number in range(n_runs):
        writer.write_run(number)


@dataclass
class _Writer:
    url: str
    units_per_layer: int
    seed: int
    uses: list[ArtifactUse] = field(default_factory=list)
    previous: str | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.url)
        generator = np.random.default_rng(self.seed)
        self.neurons = {layer: self._encode_neurons(layer, generator) for layer in range(N_LAYERS)}

    def write_run(self, number: int) -> None:
        """Artifacts, record and, every other time, release of one run."""
        self.uses = []
        started = FIRST_DAY + timedelta(days=number)
        run_id, key = name_run(number), f"run {number}"
        samples = self._put_samples(number // 10)
        model = self._put("model", key, [("weights", "w" * 40)])
        for layer in range(N_LAYERS):
            activations = self._put("activations", f"{key} {layer}", [samples, model])
            neurons = self._put(
                "neurons", f"{key} {layer}", [activations], {"neurons": self.neurons[layer]}
            )
            self._put("layers", f"{key} {layer}", [activations, neurons], _layer(layer, number))
            self._put("neuron_stability", f"{key} {layer}", [activations])
        decomposition = self._put("decomposition", key, [model])
        states = self._put("head_states", key, [model, samples])
        components = self._put("components", key, [model, decomposition, states])
        patch = self._put("patch", key, [model, components], label=PATCHED_ARM)
        evidence = []
        for arm in ARMS:
            inputs = [model, samples, *([patch] if arm == PATCHED_ARM else [])]
            made = self._put("continuations", f"{key} {arm}", inputs)
            evidence += [made, self._put("scores", f"{key} {arm}", [made])]
        self._put("evaluation", key, evidence, _evaluation(number))
        record = RunRecord(
            run_id=run_id,
            command="refresh",
            status="promoted" if number % 2 == 0 else "held",
            started_at=started.isoformat(),
            finished_at=(started + timedelta(hours=1)).isoformat(),
            model_id=MODEL,
            model_digest="w" * 64,
            settings={"seed": number, "store": self.url},
            stages=[
                StageSummary(name=name, shards=1, shards_cached=0, elapsed_seconds=10.0 + number)
                for name in ("extract_activations", "generate_continuations")
            ],
            artifacts=self.uses,
        )
        if number % 2 == 0:
            record.release = self._put_release(number, run_id, started, patch[1])
        self._write(f"runs/{run_id}.json", record.model_dump_json(indent=2).encode())

    def _put_samples(self, batch: int) -> tuple[str, str]:
        row = {
            "dataset": "comments",
            "source_uri": "s3://data/comments.csv",
            "sha256": hashlib.sha256(str(batch).encode()).hexdigest(),
            "bytes": 1_000_000,
            "rows_read": 10_000,
        }
        source = ("source", row["sha256"][:40])
        tables = {"source_files": _encode([row], schemas.SOURCE_FILES)}
        return self._put("samples", f"batch {batch}", [source], tables)

    def _put(
        self,
        kind: str,
        key: str,
        inputs: Sequence[tuple[str, str]],
        tables: dict[str, tuple[bytes, int, str]] | None = None,
        label: str | None = None,
    ) -> tuple[str, str]:
        """One artifact; returns its kind and fingerprint."""
        fingerprint = hashlib.sha256(f"{kind} {key}".encode()).hexdigest()[:40]
        folder, files = f"artifacts/{kind}/{fingerprint}", []
        for name, (data, rows, columns_digest) in (tables or {}).items():
            stored_as = f"{fingerprint[:12]}-{name}.parquet"
            self._write(f"{folder}/{stored_as}", data)
            record = FileRecord(
                name=f"{name}.parquet",
                stored_as=stored_as,
                bytes=len(data),
                rows=rows,
                sha256=hashlib.sha256(data + key.encode()).hexdigest(),
                columns_digest=columns_digest,
            )
            files.append(record)
        manifest = Manifest(
            kind=kind,
            fingerprint=fingerprint,
            step_version=1,
            settings={"key": key},
            inputs=[
                InputRecord(kind=kind_, fingerprint=digest, identity=digest)
                for kind_, digest in inputs
            ],
            files=files,
            facts={"intervention": "eigenshift", "n_components": 8, "factor": 0.0},
            versions={"eigenshift": "0.1.0"},
            created_at=FIRST_DAY.isoformat(),
            elapsed_seconds=1.0,
        )
        self._write(f"{folder}/manifest.json", manifest.encode())
        self.uses.append(
            ArtifactUse(
                stage=f"make_{kind}",
                kind=kind,
                fingerprint=fingerprint,
                was_cached=False,
                elapsed_seconds=1.0,
                label=label,
            )
        )
        return kind, fingerprint

    def _put_release(self, number: int, run_id: str, moment: datetime, patch: str) -> str:
        version = name_release(number)
        release = Release(
            model_id=MODEL,
            version=version,
            previous=self.previous,
            run_id=run_id,
            action="promote",
            released_at=moment.isoformat(),
            reason="passed the gate",
            patch={"kind": "patch", "fingerprint": patch},
        )
        self._write(f"releases/org--model/{version}.json", release.model_dump_json().encode())
        self.previous = version
        return version

    def _write(self, path: str, data: bytes) -> None:
        if not self.store.is_local:
            self.store.write_bytes(path, data)
            return
        local = self.store.local_path(path)  # thousands of files need not survive a power cut
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(data)

    def _encode_neurons(self, layer: int, generator: np.random.Generator) -> tuple[bytes, int, str]:
        n_units = self.units_per_layer
        columns: dict[str, Any] = {
            "dataset": ["comments"] * n_units,
            "language": ["all"] * n_units,
            "layer": np.full(n_units, layer, np.int16),
            "site": ["mlp_activation"] * n_units,
            "pooling": ["max"] * n_units,
            "neuron_index": np.arange(n_units, dtype=np.int32),
        }
        for item in schemas.NEURONS:
            if item.name not in columns and pa.types.is_floating(item.type):
                columns[item.name] = np.round(generator.random(n_units), 3)
            elif item.name not in columns:
                columns[item.name] = pa.array([100] * n_units, pa.int64()).cast(item.type)
        table = pa.table(columns, schema=schemas.NEURONS)
        return _encode_table(table)


def _layer(layer: int, number: int) -> dict[str, tuple[bytes, int, str]]:
    row = {
        "dataset": "comments",
        "layer": layer,
        "site": "mlp_activation",
        "pooling": "max",
        "probe_auroc": 0.7 + layer / 100 + (number % 7) / 1000,
    }
    return {"layers": _encode([row], schemas.LAYERS)}


def _evaluation(number: int) -> dict[str, tuple[bytes, int, str]]:
    rows = [
        {
            "arm": arm,
            "scorer": "made-up",
            "metric": metric,
            "slice": "all",
            "value": base + (number % 5) / 100 - (0.1 if arm == PATCHED_ARM else 0.0),
            "low": base - 0.1,
            "high": base + 0.1,
            "n": 100,
        }
        for arm in ARMS
        for metric, base in (("toxicity_rate", 0.3), ("perplexity", 5.0))
    ]
    return {"evaluations": _encode(rows, schemas.EVALUATIONS)}


def _encode(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> tuple[bytes, int, str]:
    return _encode_table(pa.Table.from_pylist(list(rows), schema=schema))


def _encode_table(table: pa.Table) -> tuple[bytes, int, str]:
    """A table as Parquet, its rows, and the digest of its columns."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue(), table.num_rows, digest_columns(table.schema)
