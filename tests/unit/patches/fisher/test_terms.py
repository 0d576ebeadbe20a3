"""The table of terms: benefits and costs from their definitions, meaning where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.model.gradients import HEAD
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.fisher.deep_study import DeepStudy
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.rounds import spend_budget
from eigenshift.patches.fisher.terms import describe_terms
from tests.support.architectures import VOCAB
from tests.support.fisher_beds import Bed, make_bed, measure_benefit

EVERY = pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
STUDIES = pytest.mark.parametrize("kind", [HeadStudy, DeepStudy])


def describe(
    bed: Bed, kind: type[HeadStudy] | type[DeepStudy], edit: ModelEdit | None = None
) -> tuple[ModelEdit, list[dict[str, Any]]]:
    """The edit of a budget, or one that is given, and its rows."""
    study = kind(bed.language_model, bed.evidence, 5, tokens_per_batch=64)
    edit = spend_budget(study, 2, 0.05) if edit is None else edit
    rows = describe_terms(bed.language_model, study, edit, bed.states, n_resamples=40, seed=0)
    return edit, rows


def take_term(edit: ModelEdit, module: str, place: int, strength: float) -> ModelEdit:
    """One rank-one change of an edit, so far."""
    if module == HEAD:
        assert edit.logits is not None
        left, right = edit.logits.left[:, [place]], edit.logits.right[:, [place]]
        return ModelEdit(logits=LogitEdit.add_product(strength * left, right))
    linear = edit.linears[module]
    left, right = linear.left[:, [place]], linear.right[:, [place]]
    return ModelEdit(linears={module: type(linear)(strength * left, right)})


@EVERY
@STUDIES
def test_there_is_a_row_for_every_rank_one_change(
    name: str, kind: type[HeadStudy] | type[DeepStudy]
) -> None:
    """Best first, with intervals that hold the value; the table takes them."""
    edit, rows = describe(make_bed(name), kind)
    ranks = {layer: linear.rank for layer, linear in edit.linears.items()}
    if edit.logits is not None:
        ranks[HEAD] = edit.logits.rank
    found = [row["module"] for row in rows]
    assert {module: found.count(module) for module in found} == ranks
    assert [row["component_index"] for row in rows] == list(range(len(rows)))
    benefits = [row["benefit"] for row in rows]
    assert benefits == sorted(benefits, reverse=True)
    for row in rows:
        assert row["benefit_low"] <= row["benefit_high"]
        assert row["cost"] > 0
        assert row["step"] == pytest.approx(np.sqrt(2 * row["cost"]))
        assert 0 <= row["inclusion_frequency"] <= 1
    assert pa.Table.from_pylist(rows, schema=schemas.FISHER_COMPONENTS).num_rows == len(rows)


@EVERY
@STUDIES
def test_benefits_are_derivatives_of_the_benefit_of_the_edit(
    name: str, kind: type[HeadStudy] | type[DeepStudy]
) -> None:
    """All terms together: the relative fall per unit of the whole edit, at the base."""
    bed = make_bed(name)
    edit, rows = describe(bed, kind)
    size = 1e-3
    scaled = [measure_benefit(bed, edit.scale(sign * size)) for sign in (1.0, -1.0)]
    total = float(bed.evidence.toxic.states.weights.sum())
    expected = (scaled[1] - scaled[0]) / (2 * size) / total
    assert sum(row["benefit"] for row in rows) == pytest.approx(expected, rel=0.02)
    assert expected > 0


def test_a_single_terms_benefit_is_its_own() -> None:
    """Term by term on the head, in whatever order they were found."""
    bed = make_bed("gpt2")
    edit, rows = describe(bed, HeadStudy)
    assert edit.logits is not None
    total = float(bed.evidence.toxic.states.weights.sum())
    expected = []
    for place in range(edit.logits.rank):
        after, before = (
            measure_benefit(bed, take_term(edit, HEAD, place, sign * 1e-3)) for sign in (1.0, -1.0)
        )
        expected.append((before - after) / 2e-3 / total)
    found = [row["benefit"] for row in rows]
    np.testing.assert_allclose(found, sorted(expected, reverse=True), rtol=0.01, atol=1e-5)


@EVERY
@STUDIES
def test_tokens_and_contexts_are_told_where_there_are_any(
    name: str, kind: type[HeadStudy] | type[DeepStudy]
) -> None:
    """Contexts of terms of the head; tokens of what is as wide as the head's input."""
    bed = make_bed(name)
    edit, rows = describe(bed, kind)
    for row in rows:
        is_head = row["module"] == HEAD
        assert bool(row.get("contexts_high")) == is_head
        wide = is_head or len(edit.linears[row["module"]].left) == bed.language_model.head.hidden
        assert bool(row.get("tokens_up")) == wide


def test_what_a_term_of_the_head_reads_is_positive_at_toxic_positions() -> None:
    """So that tokens down are those it lowers there: the toxic ones lead the best term's."""
    bed = make_bed("llama")
    _, rows = describe(bed, HeadStudy)
    toxic = {f"t{token}" for token in bed.toxic_tokens}
    assert toxic & set(rows[0]["tokens_down"])


@STUDIES
def test_an_edit_of_nothing_has_no_rows(kind: type[HeadStudy] | type[DeepStudy]) -> None:
    """Where no step was in budget."""
    empty = LogitEdit.add_product(torch.zeros(VOCAB, 0), torch.zeros(16, 0))
    for edit in (ModelEdit(), ModelEdit(logits=empty)):
        _, rows = describe(make_bed("llama"), kind, edit)
        assert rows == []


def test_terms_that_only_write_elsewhere_have_no_tokens() -> None:
    """A model whose head reads a projection of the stream, and an edit of no head."""
    bed = make_bed("opt")
    study = DeepStudy(bed.language_model, bed.evidence, 5, tokens_per_batch=64)
    whole = study.find_direction()(0.3)
    edit = ModelEdit(linears=whole.linears)
    rows = describe_terms(bed.language_model, study, edit, bed.states, n_resamples=5, seed=0)
    assert rows
    assert not any(row.get("tokens_up") for row in rows)
