"""A study of a model's head: from what it says to components, and to a patch by any method.

Each step is done when it is first asked for, and once: by the functions that a run's stages call,
with a run's settings, but without a store. What is judged on other prompts is `evaluations.py`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
from safetensors.torch import load_file

from eigenshift.api.choices import Given, settle
from eigenshift.api.models import Model
from eigenshift.api.neurons import compute_neurons, extract_activations
from eigenshift.api.patches import ModelPatch
from eigenshift.api.representations import Panel, Shown
from eigenshift.api.result_tables import ResultTable
from eigenshift.api.scorers import has_gradients, take_scorer
from eigenshift.api.scratch import read_table, work_in_scratch
from eigenshift.api.texts import Texts, digest_texts
from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import SettingsError
from eigenshift.components.decomposition import (
    Decomposition,
    TensorRows,
    decompose_leading,
    decompose_rows,
)
from eigenshift.components.harmless_texts import choose_harmless_texts
from eigenshift.components.head_states import collect_head_states
from eigenshift.components.labelled_text import encode_labelled_text
from eigenshift.components.stages import (
    ComponentKey,
    DecompositionKey,
    HarmlessKey,
    HeadStateKey,
    LabelledTextKey,
)
from eigenshift.components.table import write_components
from eigenshift.generation.continuations import LoadedArm, generate_continuations
from eigenshift.generation.prompts import Part, describe_prompts
from eigenshift.model.taps import name_sites
from eigenshift.patches.edit_files import read_edit
from eigenshift.patches.fisher.table import find_fisher_components
from eigenshift.patches.interventions.building import build_patch
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.registry import find_recipe, list_needs
from eigenshift.patches.patching import load_patch
from eigenshift.patches.requests import UNIT_SITES, Need, PatchRequest
from eigenshift.patches.stages import (
    DESCRIPTION_NAME,
    FISHER_EDIT_NAME,
    FISHER_PLACES,
    TENSORS_NAME,
    FisherKey,
)
from eigenshift.settings import PositionSource, RefreshSettings, StateSource, parse_section
from eigenshift.stages import tables
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scoring import score_continuations
from eigenshift.toxicity.stages import PositionKey
from eigenshift.toxicity.toxic_positions import locate_toxic_words, make_finder
from eigenshift.toxicity.unscored import require_scored

logger = logging.getLogger(__name__)

COMPONENT_COLUMNS = ("component_index", "factor", "effect_size", "auroc", "logit_gain", "tokens_up")
STEPS = ("decomposition", "head_states", "harmless_texts", "units")
"""Done once, when they are first asked for."""


@dataclass(frozen=True)
class _Said:
    """Texts that states are taken from, their scores, and their own marks of toxic words."""

    continuations: pa.Table
    scores: pa.Table
    spans: pa.Table


@dataclass(frozen=True, eq=False, repr=False)
class Study(Shown):
    """What generates toxicity in one model's head, and what can be done about it.

    Attributes:
        model: The unpatched model.
        settings: In force.
        scorer: Judges what the model says.
        prompts: Are continued; None: labelled texts are read instead.
        neutral: Harmless texts, half of which calibrate.
        labelled: Texts with labels.
    """

    model: Model
    settings: RefreshSettings
    scorer: Scorer | None
    prompts: Texts | None
    neutral: Texts | None
    labelled: Texts | None
    _components: dict[float, ResultTable] = field(default_factory=dict, repr=False)

    @property
    def components(self) -> ResultTable:
        """Every component of the head with its scores, the most toxic first."""
        return self.score_components(self.settings.components.max_perplexity_increase)

    @cached_property
    def decomposition(self) -> Decomposition:
        """Singular values and right singular vectors of the head."""
        key = DecompositionKey.of(self.settings)
        rows = TensorRows(self.model.language_model.head_weight)
        if key.n_decomposed is None:
            device = self.model.language_model.device
            return decompose_rows(rows, None if device.type == "cpu" else str(device))
        return decompose_leading(rows, key.n_decomposed, key.seed or 0)

    @property
    def continuations(self) -> pa.Table:
        """What the model says to the prompts, or labelled texts as if it had said them."""
        return self._said.continuations

    @property
    def scores(self) -> pa.Table:
        """What the scorer says of them (`schemas.SCORES`)."""
        return self._said.scores

    @cached_property
    def head_states(self) -> pa.Table:
        """What enters the head before toxic words, and before matched others."""
        positions = self._locate_words()
        with work_in_scratch() as workspace, self.model.language_model.lock:
            collect_head_states(
                self.model.language_model,
                self.continuations,
                self.scores,
                positions,
                HeadStateKey.of(self.settings),
                tokens_per_batch=self.settings.execution.tokens_per_batch,
                workspace=workspace,
            )
            return read_table(workspace, tables.HEAD_STATES.file)

    @cached_property
    def harmless_texts(self) -> pa.Table:
        """Harmless texts of the domain, on which a budget is measured too."""
        samples = schemas.SAMPLES.empty_table() if self.labelled is None else self.labelled.samples
        with work_in_scratch() as workspace, self.model.language_model.lock:
            choose_harmless_texts(
                self.model.language_model,
                self.continuations,
                self.scores,
                samples,
                HarmlessKey.of(self.settings, for_calibration=True),
                workspace,
            )
            return read_table(workspace, tables.HARMLESS_TEXTS.file)

    @cached_property
    def units(self) -> pa.Table:
        """How well the MLPs' units tell toxic texts (`schemas.NEURONS`)."""
        present = name_sites(self.model.model)
        sites = [f"{site.value}_max" for site in UNIT_SITES if site.value in present]
        if not sites:
            return schemas.NEURONS.empty_table()
        given = self.settings.activations.model_dump(exclude={"sites", "layers"})
        labelled = _require(self.labelled, "labelled", "units")
        activations = extract_activations(self.model, labelled, sites=sites, **given)
        return compute_neurons(activations).arrow

    def score_components(self, max_perplexity_increase: float) -> ResultTable:
        """As `components`, but those selected are what another budget allows.

        Args:
            max_perplexity_increase: On calibration texts, relative.
        """
        if max_perplexity_increase not in self._components:
            self._components[max_perplexity_increase] = self._score(max_perplexity_increase)
        return self._components[max_perplexity_increase]

    def build_patch(
        self,
        method: str | None = None,
        *,
        max_perplexity_increase: float | None = None,
        seed: int | None = None,
        **choices: Any,
    ) -> ModelPatch:
        """Build the patch of one method, as strong as the budget allows or as it is asked to be.

        Args:
            method: Name of an intervention (`eigenshift.patches.interventions.registry`), such as
                eigenshift_fisher, eigenshift, leace, damp, aura; by default the settings' own.
            max_perplexity_increase: Budget on calibration texts, relative; by default the
                settings' own.
            seed: Of controls that are drawn.
            choices: Where the method takes them: n_components (components, or units), factor (of
                these components), score (their ranking); and divergence for all: scale the change
                until its KL to the base is this, nats a token.

        Raises:
            SettingsError: No such method, it does not take a choice, or the study lacks what it
                reads.
            ComponentError: More components are asked for than there are, or too few toxic words
                were said.
            NothingToDampError: Nothing helps within the budget.
        """
        own = self.settings.components
        name = method or self.settings.patch.intervention
        budget = max_perplexity_increase
        document = {
            "intervention": name,
            "max_perplexity_increase": own.max_perplexity_increase if budget is None else budget,
            "seed": own.seed if seed is None else seed,
        }
        recipe = find_recipe(name, "build_patch")
        heeded = recipe.takes | {"divergence"}
        if unheeded := sorted(choices.keys() - heeded):
            raise SettingsError(
                f"build_patch: expected choices that {name} takes ({', '.join(sorted(heeded))}), "
                f"found {', '.join(unheeded)}. Leave it out, or set max_perplexity_increase."
            )
        request = parse_section(PatchRequest, {**document, **choices}, "build_patch")
        given = {need: self._gather(need, request) for need in list_needs(request)}
        evidence = Evidence(self.model.language_model, given)
        with work_in_scratch() as workspace, self.model.language_model.lock:
            build_patch(request, evidence, model_id=self.model.name, workspace=workspace)
            patch = load_patch(workspace.path(TENSORS_NAME), workspace.path(DESCRIPTION_NAME))
        seen = digest_texts(self.prompts, self.neutral, self.labelled)
        return ModelPatch(self.model, patch, seen, workspace.facts)

    def describe(self) -> Panel:
        """What it is made of, and which steps are done."""
        kinds = {"prompts": self.prompts, "neutral": self.neutral, "labelled": self.labelled}
        rows = [(name, str(len(found))) for name, found in kinds.items() if found is not None]
        rows.append(("scorer", "-" if self.scorer is None else self.scorer.name))
        steps = {
            "continuations": "_said" in self.__dict__,
            **{name: name in self.__dict__ for name in STEPS},
            "components": bool(self._components),
        }
        done = [name for name, is_done in steps.items() if is_done]
        rows.append(("done", ", ".join(done) or "nothing yet"))
        return Panel(f"study of {self.model.name}", ("", "value"), rows)

    @cached_property
    def _said(self) -> _Said:
        """Texts that states are taken from."""
        with work_in_scratch() as workspace, self.model.language_model.lock:
            if self.settings.components.states_from is StateSource.labelled_text:
                return self._read_labelled(workspace)
            if self.prompts is None:
                empty = (schemas.CONTINUATIONS, schemas.SCORES, schemas.LABELLED_SPANS)
                return _Said(*(schema.empty_table() for schema in empty))
            return self._continue_prompts(self.prompts, workspace)

    def _read_labelled(self, workspace: Workspace) -> _Said:
        """Labelled texts, as if the model had said them."""
        labelled = _require(self.labelled, "labelled", "components.states_from: labelled_text")
        key = LabelledTextKey.of(self.settings)
        encode_labelled_text(self.model.language_model, labelled.samples, key, workspace)
        found = (tables.CONTINUATIONS, tables.SCORES, tables.LABELLED_SPANS)
        return _Said(*(read_table(workspace, table.file) for table in found))

    def _continue_prompts(self, prompts: Texts, workspace: Workspace) -> _Said:
        """What the model says, and how it is judged."""
        rows = describe_prompts(prompts.samples.to_pylist(), Part.selection)
        generated = generate_continuations(
            self.model.language_model,
            pa.Table.from_pylist(rows, schema=schemas.PROMPTS),
            {BASE_ARM: LoadedArm(None)},
            self.settings.generation.sampling,
            sequences_per_batch=self.settings.execution.sequences_per_batch,
            workspaces={BASE_ARM: workspace},
        )
        list(generated)
        continuations = read_table(workspace, tables.CONTINUATIONS.file)
        score_continuations(self._require_scorer(), continuations, workspace)
        scores = read_table(workspace, tables.SCORES.file)
        n_unscored, bound = workspace.facts["n_unscored"], self.settings.scorer.max_unscored_share
        require_scored(n_unscored, len(scores), bound, "prompts of the study")
        return _Said(continuations, scores, schemas.LABELLED_SPANS.empty_table())

    def _require_scorer(self) -> Scorer:
        if self.scorer is None:
            raise SettingsError(
                "study: expected a scorer that judges what the model says, found none. Give "
                "scorer=... to study_head."
            )
        return self.scorer

    def _locate_words(self) -> pa.Table:
        """Toxic words of the texts (`schemas.TOXIC_POSITIONS`)."""
        if not len(self.continuations):
            raise SettingsError(
                "study: expected prompts to continue, or labelled texts to read "
                "(components.states_from: labelled_text), found none. Give prompts=... to "
                "study_head."
            )
        components = self.settings.components
        finder = make_finder(
            PositionKey.of(self.settings),
            load_scorer=self._require_scorer,
            words=components.lexicon,
            read_spans=lambda: self._said.spans,
        )
        with work_in_scratch() as workspace, self.model.language_model.lock:
            locate_toxic_words(
                finder, self.model.tokenizer, self.continuations, self.scores, workspace
            )
            return read_table(workspace, tables.TOXIC_POSITIONS.file)

    def _score(self, max_perplexity_increase: float) -> ResultTable:
        key = ComponentKey.of(self.settings)
        update = {"max_perplexity_increase": max_perplexity_increase}
        with work_in_scratch() as workspace, self.model.language_model.lock:
            write_components(
                self.model.language_model,
                self.head_states,
                self.decomposition,
                _require(self.neutral, "neutral", "components").samples,
                self.harmless_texts,
                key.components.model_copy(update=update),
                max_tokens=key.max_tokens,
                tokens_per_batch=self.settings.execution.tokens_per_batch,
                workspace=workspace,
            )
            found = read_table(workspace, tables.COMPONENTS.file)
        facts = workspace.facts
        ranks = found["rank"].to_pylist()
        notes = [
            f"selected: {len(facts['selected'])}, from {facts['n_toxic']} toxic and "
            f"{facts['n_nontoxic']} matched positions of {facts['n_prompts']} prompts"
        ]
        if facts["nothing_selected"]:
            notes.append(facts["nothing_selected"])
        return ResultTable(
            found,
            f"{len(found)} components of the head of {self.model.name}, most toxic first",
            COMPONENT_COLUMNS,
            tuple(sorted(range(len(found)), key=ranks.__getitem__)),
            tuple(notes),
        )

    def _gather(self, need: Need, request: PatchRequest) -> Any:
        """One kind of evidence."""
        if need is Need.components:
            return self.score_components(request.max_perplexity_increase).arrow
        if need is Need.fisher:
            return self._find_fisher(request)
        if need is Need.neutral_texts:
            return _require(self.neutral, "neutral", request.intervention).samples
        if need is Need.labelled_texts:
            return _require(self.labelled, "labelled", request.intervention).samples
        return getattr(self, need.value)

    def _find_fisher(self, request: PatchRequest) -> Any:
        """The change in the Fisher metric, as an edit."""
        place = FISHER_PLACES[request.intervention]
        with work_in_scratch() as workspace, self.model.language_model.lock:
            find_fisher_components(
                self.model.language_model,
                self.head_states,
                self.continuations,
                _require(self.neutral, "neutral", request.intervention).samples,
                self.harmless_texts,
                FisherKey.of_place(self.settings, place, request.max_perplexity_increase),
                tokens_per_batch=self.settings.execution.tokens_per_batch,
                workspace=workspace,
            )
            return read_edit(load_file(workspace.path(FISHER_EDIT_NAME)))


def study_head(
    model: Model,
    prompts: Texts | None = None,
    neutral: Texts | None = None,
    labelled: Texts | None = None,
    *,
    scorer: Any = None,
    settings: Given = None,
) -> Study:
    """Begin a study; its steps are done when they are asked for.

    Args:
        model: The unpatched model.
        prompts: What the model is to continue; judge the patch on others (`Texts.split`).
        neutral: Harmless texts that a budget is measured on; half of them are left for `evaluate`.
        labelled: Texts with labels, for methods that read them and for harmless text of the
            domain.
        scorer: What `load_scorer` gives, or a function from texts to probabilities.
        settings: Of a run, or some of them by name, e.g. {"generation.n_samples": 5}
            (docs/settings.md).

    Raises:
        SettingsError: A setting does not fit.
    """
    chosen = settle(settings)
    judge = None if scorer is None else take_scorer(scorer)
    asked = chosen.components
    is_default = "positions" not in asked.model_fields_set
    if is_default and asked.positions.asks_scorer and judge and not has_gradients(judge):
        logger.info("toxic words are found by leaving words out: scorer %s", judge.name)
        update = {"positions": PositionSource.occlusion}
        chosen = chosen.model_copy(update={"components": asked.model_copy(update=update)})
    return Study(model, chosen, judge, prompts, neutral, labelled)


def _require(texts: Texts | None, name: str, use: str) -> Texts:
    if texts is None:
        raise SettingsError(
            f"{use}: expected {name} texts, found none. Give {name}=... to study_head."
        )
    return texts
