"""A study: each step once, by a run's functions; every method by its name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from eigenshift.api.models import Model
from eigenshift.api.study import Study, study_head
from eigenshift.api.texts import Texts
from eigenshift.base.errors import ComponentError, SettingsError
from eigenshift.base.schemas import COMPONENTS
from eigenshift.patches.interventions.registry import INTERVENTIONS
from eigenshift.patches.requests import PatchRequest
from eigenshift.settings import PositionSource
from eigenshift.toxicity.token_spans import REPLACEMENT
from tests.unit.api.conftest import SMALL, is_blamed, judge_words


def test_a_step_is_done_when_it_is_asked_for_and_once(
    model: Model, prompts: tuple[Texts, Texts], neutral: Texts
) -> None:
    """A study begins with nothing."""
    calls: list[int] = []

    def count_calls(texts: list[str]) -> list[float]:
        calls.append(len(texts))
        return judge_words(texts)

    study = study_head(model, prompts[0], neutral, scorer=count_calls, settings=SMALL)
    assert not calls
    assert "nothing yet" in study._repr_html_()
    assert study.head_states is study.head_states
    n_calls = len(calls)
    assert n_calls
    assert study.components is study.components
    assert len(calls) == n_calls
    assert "components" in study._repr_html_()


def test_components_are_those_of_the_head(study: Study, model: Model) -> None:
    """As many as it has, by NumPy's own decomposition; none of their tokens is shown."""
    table = study.components
    assert table.arrow.schema.equals(COMPONENTS)
    weight = model.language_model.head_weight.detach().double().numpy()
    expected = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(table.arrow["sigma"].to_numpy(), expected, rtol=1e-6)
    ranks = table.arrow["rank"].to_pylist()
    assert table.first is not None
    assert [ranks[place] for place in table.first] == list(range(len(ranks)))
    assert "hidden" in table._repr_html_()


def test_toxic_positions_are_before_words_that_were_blamed(study: Study) -> None:
    """The function blames words by their first letter, which is in the token that follows.

    The tiny model says bytes at random: tokens that are part of a character say nothing here.
    """
    states = study.head_states
    tokens = states.filter(states["is_toxic"])["next_token"].to_pylist()
    toxic = [token for token in tokens if REPLACEMENT not in token]
    assert len(toxic) > 20
    assert [token for token in toxic if not any(map(is_blamed, token))] == []


def test_a_function_has_words_found_by_leaving_them_out(study: Study) -> None:
    """Unless the settings say what finds them: then it is refused as in a run."""
    assert study.settings.components.positions is PositionSource.occlusion


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_the_registry_says_what_a_method_takes(name: str) -> None:
    """Choices are fields of a request."""
    assert INTERVENTIONS[name].takes <= set(PatchRequest.model_fields)


@pytest.mark.parametrize("method", ["eigenshift", "random_components", "damp"])
def test_a_number_that_is_asked_for_is_taken(study: Study, method: str) -> None:
    """Components or units."""
    patch = study.build_patch(method, n_components=2)
    head, units = patch.patch.edit.head, patch.patch.edit.units
    n_units = sum(int((unit.scale != 1).sum()) for unit in units.values())
    assert (0 if head is None else head.rank) + n_units == 2


def test_a_divergence_that_is_asked_for_is_met(study: Study) -> None:
    """In nats a token, on calibration texts."""
    patch = study.build_patch("mean_difference", max_perplexity_increase=0.2, divergence=0.01)
    found = patch.patch.description.parameters["calibration_kl_to_base"]
    assert isinstance(found, float)
    assert 0.009 < found <= 0.01


@pytest.mark.parametrize(
    ("method", "choice"),
    [
        ("eigenshift_fisher", {"n_components": 3}),
        ("damp", {"factor": 0.5}),
        ("leace", {"score": "auroc"}),
    ],
)
def test_what_a_method_does_not_take_is_refused(
    study: Study, method: str, choice: dict[str, object]
) -> None:
    """It would be ignored without a word."""
    with pytest.raises(SettingsError, match=f"{method} takes .*found {next(iter(choice))}"):
        study.build_patch(method, **choice)


def test_what_is_missing_is_named(model: Model, neutral: Texts, texts: Texts) -> None:
    """Texts, prompts, a scorer, a method."""
    study = study_head(model, neutral=neutral, settings=SMALL)
    with pytest.raises(SettingsError, match="expected labelled texts"):
        study.build_patch("damp", n_components=3)
    with pytest.raises(SettingsError, match="expected prompts to continue"):
        study.build_patch("eigenshift")
    with pytest.raises(SettingsError, match="expected one of eigenshift"):
        study.build_patch("no_such_method")
    with pytest.raises(SettingsError, match="expected a scorer"):
        _ = study_head(model, texts, neutral, settings=SMALL).components
    with pytest.raises(SettingsError, match="found colour"):
        study.build_patch("eigenshift", colour=1)
    with pytest.raises(SettingsError, match="generation"):
        study_head(model, settings={"generation.colour": 1})


def test_units_alone_need_no_prompts(model: Model, neutral: Texts, texts: Texts) -> None:
    """Damp reads labelled texts; its budget is measured on those and on neutral ones."""
    study = study_head(model, None, neutral, texts, settings=SMALL)
    patch = study.build_patch("damp", max_perplexity_increase=0.1)
    assert int(patch.patch.description.parameters["n_units"]) >= 1


def test_labelled_texts_can_be_read_instead_of_prompts(
    model: Model, neutral: Texts, texts: Texts
) -> None:
    """Teacher-forced, as a run with components.states_from does."""
    settings = {**SMALL, "components.states_from": "labelled_text"}
    study = study_head(model, None, neutral, texts, scorer=judge_words, settings=settings)
    assert set(study.continuations["prompt"].to_pylist()) == {""}
    assert len(study.continuations) == len(texts)
    assert set(study.scores["scorer"].to_pylist()) == {"label"}


def test_more_components_than_there_are_is_refused(study: Study) -> None:
    """By the method itself."""
    with pytest.raises(ComponentError, match="at most 32 components"):
        study.build_patch("eigenshift", n_components=33)


def test_a_table_of_another_budget_is_another_table(study: Study) -> None:
    """The same scores; what is selected is what the budget allows."""
    one, other = study.score_components(1e-6).arrow, study.score_components(0.3).arrow
    assert one["effect_size"].equals(other["effect_size"])
    assert (
        pa.compute.sum(one["is_selected"]).as_py() <= pa.compute.sum(other["is_selected"]).as_py()
    )
