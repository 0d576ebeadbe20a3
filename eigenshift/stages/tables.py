"""Tables of the store: the file each lies in and its schema, said once for all who write or read.

Columns and their meanings are `base/schemas.py`'s; which stage writes which table is in the stages'
declarations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pyarrow as pa

from eigenshift.base import schemas

FindSchema = Callable[[pa.Schema], pa.Schema]
"""The schema that a table with these columns should have."""


@dataclass(frozen=True)
class Table:
    """A Parquet file of an artifact, or its shards.

    Attributes:
        file: Its name; with `*` for shards.
        schema: Its columns, or, where these depend on settings, what finds them by what is there.
        keeps_books: It says what became of rows, and holds none of the stage's results.
    """

    file: str
    schema: pa.Schema | FindSchema = field(repr=False)
    keeps_books: bool = False

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return self.file.partition("*")[0].removesuffix(".parquet")

    def matches(self, file: str) -> bool:
        """Whether a file of this name holds it."""
        return fnmatchcase(file, self.file)

    def expect(self, found: pa.Schema) -> pa.Schema:
        """The schema a file should have.

        Args:
            found: Its columns, which decide where the schema depends on settings.
        """
        return self.schema if isinstance(self.schema, pa.Schema) else self.schema(found)


def _expect_activations(found: pa.Schema) -> pa.Schema:
    """Keys first, then one list column of floats per site and pooling."""
    keys = schemas.activations_schema({}, "float16")
    lists = [column for column in list(found)[len(keys) :] if _is_list_of_floats(column.type)]
    return pa.schema([*keys, *lists])


def _is_list_of_floats(type_: pa.DataType) -> bool:
    is_list = pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(is_list and pa.types.is_floating(type_.value_type))


RECORDS = Table("records.parquet", schemas.RECORDS)
REJECTED_ROWS = Table("rejected_rows.parquet", schemas.REJECTED_ROWS, keeps_books=True)
SOURCE_FILES = Table("source_files.parquet", schemas.SOURCE_FILES, keeps_books=True)
SAMPLES = Table("samples-*.parquet", schemas.SAMPLES)
SELECTION_PROMPTS = Table("selection-*.parquet", schemas.PROMPTS)
EVALUATION_PROMPTS = Table("evaluation-*.parquet", schemas.PROMPTS)
ACTIVATIONS = Table("activations.parquet", _expect_activations)
NEURON_SUMMARIES = Table("neuron_summaries.parquet", schemas.NEURON_SUMMARIES)
NEURONS = Table("neurons.parquet", schemas.NEURONS)
NEURON_STABILITY = Table("neuron_stability.parquet", schemas.NEURON_STABILITY)
LAYERS = Table("layers.parquet", schemas.LAYERS)
LAYER_TRANSFERS = Table("layer_transfers.parquet", schemas.LAYER_TRANSFERS)
CONTINUATIONS = Table("continuations.parquet", schemas.CONTINUATIONS)
SCORES = Table("scores.parquet", schemas.SCORES)
LABELLED_SPANS = Table("labelled_spans.parquet", schemas.LABELLED_SPANS)
TOXIC_POSITIONS = Table("toxic_positions.parquet", schemas.TOXIC_POSITIONS)
HARMLESS_TEXTS = Table("harmless_texts.parquet", schemas.HARMLESS_TEXTS)
HEAD_STATES = Table("head_states.parquet", schemas.HEAD_STATES)
COMPONENTS = Table("components.parquet", schemas.COMPONENTS)
FISHER_COMPONENTS = Table("fisher_components.parquet", schemas.FISHER_COMPONENTS)
COMPONENT_CONTEXTS = Table("component_contexts.parquet", schemas.COMPONENT_CONTEXTS)
FLUENCY = Table("fluency.parquet", schemas.FLUENCY)
TOKEN_SHIFTS = Table("token_shifts.parquet", schemas.TOKEN_SHIFTS)
SURVIVAL = Table("survival.parquet", schemas.SURVIVAL)
CONTROL_DRAWS = Table("control_draws.parquet", schemas.CONTROL_DRAWS)
EVALUATIONS = Table("evaluations.parquet", schemas.EVALUATIONS)
CONFIRMATIONS = Table("confirmations.parquet", schemas.CONFIRMATIONS)
SCORER_AGREEMENT = Table("scorer_agreement.parquet", schemas.SCORER_AGREEMENT)
SCORER_QUALITY = Table("scorer_quality.parquet", schemas.SCORER_QUALITY)
ARM_PAIRS = Table("arm_pairs.parquet", schemas.ARM_PAIRS)
COMPARISONS = Table("comparison.parquet", schemas.COMPARISONS)
INTERVENTION_CHOICES = Table("intervention_choices.parquet", schemas.INTERVENTION_CHOICES)
TRIALS = Table("trials.parquet", schemas.TRIALS)
PREDICTED_RATES = Table("predicted_rates.parquet", schemas.PREDICTED_RATES)
BENCHMARK_ANSWERS = Table("benchmark_answers.parquet", schemas.BENCHMARK_ANSWERS)
BENCHMARKS = Table("benchmarks.parquet", schemas.BENCHMARKS)
