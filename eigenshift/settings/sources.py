"""Which texts are read, and how they are checked and sharded."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from eigenshift.settings.fields import FRACTION, Frozen, Location


class SourceFormat(str, Enum):
    """File formats we read in their original schema (see `eigenshift/datasets/`)."""

    jigsaw = "jigsaw"
    jigsaw_unintended_bias = "jigsaw_unintended_bias"
    jigsaw_multilingual = "jigsaw_multilingual"
    toxicn = "toxicn"
    toxic_spans = "toxic_spans"
    real_toxicity_prompts = "real_toxicity_prompts"
    sentences = "sentences"
    paragraphs = "paragraphs"
    huggingface = "huggingface"


class Role(str, Enum):
    """What a source is for."""

    labelled = "labelled"
    prompts = "prompts"
    neutral = "neutral"


DEFAULT_ROLES = {
    SourceFormat.real_toxicity_prompts: Role.prompts,
    SourceFormat.sentences: Role.neutral,
    SourceFormat.paragraphs: Role.neutral,
}
COLUMN_FORMATS = (SourceFormat.huggingface, SourceFormat.sentences, SourceFormat.paragraphs)
"""Formats whose columns the settings name."""


def _write_labels(labels: Any) -> Any:
    """YAML reads a bare 0 as a number and a bare `no` as false; labels are what a file has."""
    if isinstance(labels, list | tuple):
        return tuple(str(item) if isinstance(item, int | float) else item for item in labels)
    return labels


Labels = Annotated[tuple[str, ...], BeforeValidator(_write_labels)]


class ColumnMapping(Frozen):
    """Which column holds what. Only for sources of `COLUMN_FORMATS`."""

    text: str = Field(
        "text",
        description="Column with the text (or the prompt). A field of a nested column is named "
        "with a dot: 'prompt.text'; so in the other columns.",
    )
    label: str | None = Field(
        None,
        description="Column with the label: 0/1, true/false, words such as toxic/not toxic, or a "
        "score from 0 to 1.",
    )
    toxic_labels: Labels = Field(
        (),
        description="Where labels are classes: those that mean toxic, e.g. ['0', '1']. Then "
        "nontoxic_labels must be named too, and rows with any other label are rejected.",
    )
    nontoxic_labels: Labels = Field(
        (), description="Where labels are classes: those that mean not toxic, e.g. ['2']."
    )
    label_scale: float = Field(
        1.0, gt=0.0, description="Where labels are scores: the highest there is, e.g. 100."
    )
    language: str | None = Field(None, description="Column with a language code, if any.")
    id: str | None = Field(None, description="Column with the row's own id, if any.")

    @model_validator(mode="after")
    def _check_labels(self) -> ColumnMapping:
        if bool(self.toxic_labels) != bool(self.nontoxic_labels):
            raise ValueError("toxic_labels and nontoxic_labels belong together: name both")
        if set(self.toxic_labels) & set(self.nontoxic_labels):
            raise ValueError("a label is in toxic_labels and in nontoxic_labels: leave it in one")
        if self.toxic_labels and self.label is None:
            raise ValueError("toxic_labels belong to a column: name it by columns.label")
        if self.toxic_labels and self.label_scale != 1.0:
            raise ValueError("toxic_labels are classes, label_scale is of scores: keep one of them")
        return self


class SourceSettings(Frozen):
    """One dataset to read."""

    name: str = Field(
        title="Name",
        description="Name of the dataset in every table, e.g. 'jigsaw'.",
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
    )
    format: SourceFormat = Field(
        title="Format",
        description="The file's original schema. Of plain texts 'paragraphs' rejects headings and "
        "single sentences, whose perplexity is several times that of paragraphs.",
    )
    uri: Location = Field(
        title="Location",
        description="A path or URL (any fsspec scheme) of a file, a folder of files, or a glob; "
        "for 'huggingface' an id too.",
        min_length=1,
    )
    labels_uri: Location | None = Field(
        None, description="Jigsaw test set only: test_labels.csv, joined to test.csv by id."
    )
    role: Role | None = Field(
        None,
        title="Role",
        description="What the texts are for; by default what the format suggests.",
    )
    split: str = Field("train", description="Name of the split in the samples table.")
    language: str = Field(
        "auto",
        description="Language code of the texts; 'auto' tells Chinese from English by script.",
    )
    toxic_threshold: FRACTION = Field(
        0.5,
        description="Where labels are scores: at or above this is toxic "
        "(RealToxicityPrompts: strictly above, as its authors do).",
    )
    columns: ColumnMapping = Field(
        ColumnMapping(),
        title="Columns",
        description="Column names ('huggingface', 'sentences' and 'paragraphs' only).",
    )
    configuration: str | None = Field(None, description="Hugging Face dataset configuration.")
    revision: str | None = Field(None, description="Hugging Face dataset revision (pin a commit).")
    max_rows: int | None = Field(
        None,
        ge=1,
        description="Read only this many rows per file, from the top. The rest is not read at all.",
    )

    @property
    def effective_role(self) -> Role:
        """The role asked for, or the one the format suggests."""
        return self.role or DEFAULT_ROLES.get(self.format, Role.labelled)

    @model_validator(mode="after")
    def _check_combination(self) -> SourceSettings:
        if self.labels_uri is not None and self.format is not SourceFormat.jigsaw:
            raise ValueError("labels_uri belongs to format 'jigsaw' only")
        is_mapped = self.format in COLUMN_FORMATS
        if is_mapped and self.effective_role is Role.labelled and self.columns.label is None:
            raise ValueError(f"a labelled {self.format.value} source needs columns.label")
        return self


class IngestionSettings(Frozen):
    """How texts are checked and sharded."""

    max_characters: int = Field(
        20_000, ge=1, description="Longer texts are rejected (kept in rejected_rows with a reason)."
    )
    rows_per_shard: int = Field(2_000, ge=1, description="Samples per Parquet shard.")
    max_rejected_share: FRACTION = Field(
        0.5,
        description="A file of which a larger share of rows is rejected stops the run: it is "
        "probably not the file meant. Not counted are repeats, rows marked as not scored (-1), and "
        "the blank lines, headings and single sentences of plain text.",
    )
    max_unknown_labels: FRACTION = Field(
        0.01,
        description="Likewise a file of whose labels a larger share is out of range or unknown: "
        "probably the column holds classes, counts or other scores.",
    )
