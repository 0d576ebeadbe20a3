"""How fast a run goes, never what it finds: enters no fingerprint."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import Field

from eigenshift.settings.fields import FRACTION, Frozen, Location

PLACE = Annotated[str, Field(coerce_numbers_to_str=True, pattern=r"^(\d+|cuda(:\d+)?|cpu|disk)$")]
"""A GPU by number or as cuda:1, the processor's memory, or files."""
HOLDER = Annotated[str, Field(coerce_numbers_to_str=True, pattern=r"^(\d+|cuda(:\d+)?|cpu)$")]
"""A place whose memory is bounded."""
AMOUNT = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s?(KB|MB|GB|KiB|MiB|GiB)$")]
"""Of memory."""


class Overlap(str, Enum):
    """What a refresh does when another one of the same model is running."""

    queue = "queue"
    cancel = "cancel"
    allow = "allow"


class Runner(str, Enum):
    """Where the tasks of a run are carried out."""

    threads = "threads"
    processes = "processes"
    dask = "dask"
    ray = "ray"


class Placement(Frozen):
    """Where a model's weights are, and so where it runs."""

    device: str = Field(
        "auto",
        description="cpu, cuda, cuda:1; auto takes a CUDA (or ROCm) GPU if there is one. Apple's "
        "have no float64 and are not used.",
    )
    device_map: Literal["auto"] | dict[str, PLACE] | None = Field(
        None,
        description="Divide the model under study over several places (pip extra device-map). "
        "auto: GPUs first, then the processor's memory, then files; {module: place} says it: a "
        "GPU's number, cpu or disk. Empty: all of it is on the device.",
    )
    max_memory: dict[HOLDER, AMOUNT] | None = Field(
        None,
        description="With device_map auto: the most weights at each place, as {0: 20GiB, cpu: "
        "60GiB}; places that are not named are not used, files always are. Empty: 80% of what is "
        "free.",
    )
    offload_folder: str | None = Field(
        None,
        description="Where weights on disk are written that cannot be read from the model's own "
        "files (experts that transformers puts together); empty: the temporary folder.",
    )


class ExecutionSettings(Placement):
    """How fast a run goes; never what it finds. Enters no fingerprint."""

    concurrency: int = Field(
        2, ge=1, description="Tasks in flight at once; workers, where the runner starts its own."
    )
    runner: Runner = Field(
        Runner.threads,
        description="threads: in this process, sharing one loaded model; processes: each with its "
        "own; dask, ray: on a cluster (pip extras of these names).",
    )
    cluster_address: Location | None = Field(
        None,
        description="A running Dask scheduler (tcp://host:8786) or Ray head (ray://host:10001); "
        "empty: workers are started on this machine for the run.",
    )
    gpus_per_task: float = Field(
        0.0,
        ge=0,
        description="Dask and Ray: GPUs that a task which runs a model claims; below 1, tasks "
        "share one; as many as device_map divides it over.",
    )
    overlap: Overlap = Field(
        Overlap.queue,
        description="If another refresh of the model runs on the same Prefect server: wait for it, "
        "cancel this one, or run beside it (safe, but may do the same work twice).",
    )
    credentials_block: str | None = Field(
        None,
        description="Prefect block with the storage's credentials, type/name: a secret holding a "
        "JSON object of environment variables, or aws-credentials; empty: the environment's own.",
        pattern=r"^[a-z0-9-]+/.+$",
    )
    tokens_per_batch: int = Field(
        2_048,
        ge=1,
        description="Token budget of a forward pass; halved, and remembered for the model, where "
        "memory runs out. So are the next two.",
    )
    sequences_per_batch: int = Field(256, ge=1, description="Continuations generated at once.")
    texts_per_scoring_batch: int = Field(64, ge=1, description="Continuations scored at once.")
    engine_gpus: int = Field(
        1, ge=1, description="generation.backend vllm: GPUs that one engine spreads its model over."
    )
    engine_memory: FRACTION = Field(
        0.85,
        description="generation.backend vllm: share of a GPU's memory that the engine takes; other "
        "models of this process lie in the rest.",
    )
    answers_per_batch: int = Field(
        16, ge=1, description="Answers to benchmark questions that are weighed at once."
    )
    show_text: bool = Field(
        False, description="Show the components' tokens, which may be offensive, in Prefect's UI."
    )
    duckdb_memory_limit: str = Field(
        "2GB", pattern=r"^\d+(\.\d+)?\s?(MB|GB|MiB|GiB)$", description="DuckDB's memory limit."
    )
