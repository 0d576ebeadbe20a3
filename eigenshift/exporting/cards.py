"""The model card of an export: README.md with metadata as the Hugging Face hub reads it.

Reads a run's record, its patch and its evaluation; says what was changed, how it was measured, on
what data, and where the numbers end. Holds no text of any sample and no path of the run's machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, RANDOM_ARM, SUPPRESSION_ARM
from eigenshift.evaluation.capability import ALL_TASKS
from eigenshift.evaluation.caveats import find_caveats
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.exporting.limits import describe_limits
from eigenshift.ledger.runs import RunRecord
from eigenshift.model.files import is_hub_id
from eigenshift.patches.patching import Patch
from eigenshift.reporting.benchmark_tables import COLUMNS, EXPLANATION, tabulate_benchmarks
from eigenshift.reporting.outcomes import (
    COMPARED,
    HOLDS_ZERO,
    REDUCTIONS,
    TRADE_OFFS,
    describe_scorers,
    format_metric,
)
from eigenshift.settings import (
    ModelSettings,
    PlainScorerSettings,
    RefreshSettings,
    ScorerKind,
    ScorerSettings,
    SourceFormat,
    SourceSettings,
    parse_settings,
)
from eigenshift.upkeep.reproduction import FILE_NAME, Reproduction

README_NAME = "README.md"
OUR_TAG = "eigenshift"
LIBRARIES = {"merged": "transformers", "lora": "peft", "patch": "eigenshift"}
RELATIONS = {"merged": "finetune", "lora": "adapter"}
"""What the hub calls an export's relation to its base; it has no word for a patch."""
LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        record: The run.
        patch: What is exported.
        arm: Its name in the run's evaluation.
        rows: `schemas.EVALUATIONS` rows, none if the run ended before.
        format: Of the export.
        licence: Licence fields of the base's own card, if known.
        changed: Parameter -> its digest in the export; empty if it holds none.
        benchmarks: `schemas.BENCHMARKS` rows, none if no benchmark questions were put.
        reproduction: What repeats the run, if it lies beside the card.
        quality: `schemas.SCORER_QUALITY` rows, none if the run measured none.
    """

    record: RunRecord
    patch: Patch
    arm: str
    rows: Sequence[Mapping[str, Any]]
    format: str
    licence: Mapping[str, str]
    changed: Mapping[str, str]
    benchmarks: Sequence[Mapping[str, Any]] = ()
    reproduction: Reproduction | None = None
    quality: Sequence[Mapping[str, Any]] = ()


def write_card(facts: CardFacts, usage: str, folder: Path) -> None:
    """Write README.md; `usage` is the format's own part on loading and undoing."""
    metadata = describe_metadata(facts).to_yaml(line_break="\n")
    text = f"---\n{metadata}\n---\n\n{describe_export(facts)}\n{usage}"
    (folder / README_NAME).write_text(text, encoding="utf-8")


def read_licence(folder: Path) -> dict[str, str]:
    """Licence fields of a base model's card, none where it has no card or the card none."""
    path = folder / README_NAME
    if not path.is_file():
        return {}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}
    return {name: data[name] for name in LICENSE_FIELDS if isinstance(data.get(name), str)}


def name_base(settings: ModelSettings) -> str:
    """The base model's name for others: its hub id, or that of the folder without its place."""
    if settings.name is not None:
        return settings.name
    return settings.id if is_hub_id(settings.id) else PurePath(settings.id.rstrip("/")).name


def describe_metadata(facts: CardFacts) -> ModelCardData:
    """The card's YAML: base model, licence, library, tags, metrics.

    A base that is a folder is not named: the field means a model of the hub.
    """
    settings = parse_settings(facts.record.settings, "run settings")
    relation = RELATIONS.get(facts.format)
    has_hub_base = is_hub_id(settings.model.id)
    return ModelCardData(
        base_model=settings.model.id if has_hub_base else None,
        base_model_relation=relation if has_hub_base else None,
        library_name=LIBRARIES[facts.format],
        pipeline_tag=None if facts.format == "patch" else "text-generation",
        tags=[OUR_TAG, "detoxification", facts.patch.description.intervention],
        model_name=f"{name_base(settings.model)}, {facts.arm}",
        eval_results=[*_list_results(facts, settings), *_list_answers(facts, settings)] or None,
        **facts.licence,
    )


def describe_export(facts: CardFacts) -> str:
    """The text that all formats share: what it is, of what, how good, on what data, its limits."""
    record, description = facts.record, facts.patch.description
    settings = parse_settings(record.settings, "run settings")
    licence = facts.licence.get("license")
    name = name_base(settings.model)
    return f"""# {name}, patched by EigenShift {record.code_version}

{_summarise(facts.patch)} Toxic continuations are meant to become rarer. Nothing was trained.
{_warn(facts)}
| | |
|---|---|
| base model | {name} |
| base model digest | `{record.model_digest}` |
| patch fits (sha256) | `{description.base_digest}` |
| run | `{record.run_id}` ({record.command}, {record.status}) |
| arm | {facts.arm} |
{_tabulate_digests(facts)}
The base model's licence applies{f" ({licence})" if licence else "; its card did not say which"}.

## Measured in this run

On the run's own prompts and neutral texts, same seeds in every arm; in brackets the bootstrap
interval. "Random components" is as many others damped as far, or a random change of the same cost;
"word filter" lowers the toxic tokens' logits within the same budget; "base again" is the base with
other random numbers.

{_tabulate_metrics(facts)}
{_tell_quality(facts)}
## Capability

{_tabulate_answers(facts)}

## Data

{_describe_data(settings, facts.rows)}
{_describe_reproduction(facts.reproduction)}
## Limits

The patch makes toxic text less likely; it does not make it impossible. The numbers hold for the
run's prompts, languages, sampling and toxicity classifier, and no further.

{_list_limits(facts, settings)}
"""


def _summarise(patch: Patch) -> str:
    edit, factor = patch.edit, patch.description.factor
    parts = []
    if edit.head is not None:
        factors = patch.description.factors
        how = "changes what enters"
        if factor is not None:
            how = f"multiplies by {factor:g} the gain of"
        elif factors:
            how = f"multiplies by {min(factors):g} to {max(factors):g} the gain of"
        parts.append(f"{how} the output head along {edit.head.rank} directions")
    if edit.units:
        n_units = sum(int((unit.scale != 1).sum()) for unit in edit.units.values())
        parts.append(f"scales {n_units} output units of {len(edit.units)} modules")
    if edit.linears:
        ranks = sorted({linear.rank for linear in edit.linears.values()})
        which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        n_layers = len(edit.linears)
        layers = "1 linear layer" if n_layers == 1 else f"{n_layers} linear layers"
        parts.append(f"adds products of {which} to the weights of {layers}")
    if edit.logits is not None:
        n_tokens = edit.logits.n_tokens
        if n_tokens == len(edit.logits.left):
            parts.append(f"adds a product of rank {edit.logits.rank} to the rows of the head")
        else:
            parts.append(f"moves the logits of {n_tokens} token{'' if n_tokens == 1 else 's'}")
    if edit.adaptive:
        parts.append(f"moves each output of {len(edit.adaptive)} modules by what it is")
    what = " and ".join(parts) or "changes nothing"
    return f"A patch ({patch.description.intervention}) that {what}."


def _warn(facts: CardFacts) -> str:
    record, obstacle = facts.record, facts.patch.description.obstacle
    failed = [check["name"] for check in record.checks if not check["is_passed"]]
    lines = []
    if record.command != "refresh":
        lines.append(f"**This patch was part of a {record.command}**: no gate judged it.")
    elif record.status != "promoted":
        reasons = "; ".join(failed) or record.status
        lines.append(f"**This run was held by the gate** ({reasons}): the patch was not released.")
    lines += [
        f"**Mind**: {text}" for text in (*record.caveats, *find_caveats(facts.rows, facts.arm))
    ]
    if obstacle is not None:
        lines.append(f"**It has no place in the weights** and runs with hooks only: {obstacle}")
    return "".join(f"\n{line}\n" for line in lines)


def _tabulate_digests(facts: CardFacts) -> str:
    """What the export holds, and whether it is bit for bit what the run measured."""
    if not facts.changed:
        return ""
    measured = facts.patch.description.tensors
    lines = ["", "| changed | sha256 | as the run had it |", "|---|---|---|"]
    for name, digest in facts.changed.items():
        known = measured.get(name)
        verdict = "unknown" if known is None else "bit for bit"
        if known is not None and known.patched != digest:
            verdict = "up to rounding (folded on other hardware)"
        lines.append(f"| {name} | `{digest}` | {verdict} |")
    return "\n".join([*lines, ""])


def _tabulate_metrics(facts: CardFacts) -> str:
    arms = [BASE_ARM, facts.arm, RANDOM_ARM, SUPPRESSION_ARM, AGAIN_ARM]
    table = MetricTable(facts.rows)
    lines = [
        "| | before | after | random components | word filter | base again (A/A) |",
        "|---|---|---|---|---|---|",
    ]
    for label, metric, unit in COMPARED:
        cells = [format_metric(metric, table.get(arm, metric), unit) for arm in arms]
        if any(cell != "-" for cell in cells):
            lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def _tabulate_answers(facts: CardFacts) -> str:
    rows = tabulate_benchmarks(facts.benchmarks, facts.arm)
    if not rows:
        return "Not measured: no benchmark questions were put to it."
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", EXPLANATION])


def _tell_quality(facts: CardFacts) -> str:
    """How well the scorers do, on which the toxicity rates rest."""
    lines = [f"- {line}" for line in describe_scorers(facts.quality)]
    return "\n".join(["", "How well the scorers do:", "", *lines, ""]) if lines else ""


def _describe_data(settings: RefreshSettings, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| dataset | format | split | used as |", "|---|---|---|---|"]
    for source in settings.sources:
        name = _name_source(source)
        role = source.effective_role.value
        lines.append(f"| {name} | {source.format.value} | {source.split} | {role} |")
    generation = settings.generation
    counted = MetricTable(rows).get(BASE_ARM, "toxicity_rate")
    n_prompts = "an unknown number of" if counted is None else counted["n"]
    return "\n".join(
        [
            *lines,
            "",
            f"Toxicity: {generation.n_samples} continuations of {generation.n_tokens} tokens of "
            f"each of {n_prompts} prompts (top-p {generation.top_p:g}, temperature "
            f"{generation.temperature:g}), judged by "
            f"{_describe_scorers(settings.scorer)}; above {settings.scorer.toxic_threshold:g} "
            f"counts as toxic. Intervals: {settings.evaluation.confidence:.0%}. The data are not "
            "in this folder.",
        ]
    )


def _list_limits(facts: CardFacts, settings: RefreshSettings) -> str:
    was_asked = bool(tabulate_benchmarks(facts.benchmarks, facts.arm))
    return describe_limits(settings, facts.rows, facts.arm, was_asked_questions=was_asked)


def _describe_reproduction(found: Reproduction | None) -> str:
    """How to repeat the run, and what it read, by digest."""
    if found is None:
        return ""
    lines = [
        *("", "## Reproduce", ""),
        f"`{FILE_NAME}` holds the settings, digests of all that was read, versions and every "
        "number. With the same model and data,",
        "",
        f"    eigenshift reproduce {FILE_NAME} --set model.id=FOLDER --set sources.0.uri=FILE",
        "",
        "repeats the run and says which number differs by how much; other files are refused by "
        "name.",
        "",
        *("| dataset | file | sha256 | rows |", "|---|---|---|---|"),
        *(
            f"| {item.dataset} | {item.file} | `{item.sha256}` | {item.rows_read:,} |"
            for item in found.data
        ),
    ]
    return "\n".join([*lines, ""])


def _describe_scorers(scorer: ScorerSettings) -> str:
    others = [
        f"{_describe_scorer(part)} for texts in {part.language!r}" for part in scorer.for_languages
    ]
    return ", ".join([_describe_scorer(scorer), *others])


def _describe_scorer(scorer: PlainScorerSettings) -> str:
    """Name and model of a scorer; of a folder without its place."""
    if scorer.kind is ScorerKind.lexicon:
        return f"{scorer.name} (a list of words)"
    if scorer.kind is ScorerKind.linear:
        return f"{scorer.name} (a linear classifier of n-grams)"
    if scorer.kind is ScorerKind.detoxify or scorer.model is None:
        return f"{scorer.name} ({scorer.model_type})"
    is_on_hub = is_hub_id(scorer.model)
    name = scorer.model if is_on_hub else PurePath(scorer.model.rstrip("/")).name
    revision = f"@{scorer.revision}" if scorer.revision else ""
    asked = ", a language model that is asked" if scorer.kind is ScorerKind.judge else ""
    return f"{scorer.name} ({name}{revision}{asked})"


def _name_source(source: SourceSettings) -> str:
    return source.uri if source.format is SourceFormat.huggingface else source.name


def _list_results(facts: CardFacts, settings: RefreshSettings) -> list[EvalResult]:
    """The exported arm's metrics, with intervals, as the hub's model-index."""
    table = MetricTable(facts.rows)
    dataset = ", ".join(source.name for source in settings.sources)
    results = []
    for label, metric, _ in COMPARED:
        row = table.get(facts.arm, metric)
        if row is None or row["value"] is None:
            continue
        interval = {name: row[name] for name in ("low", "high") if row[name] is not None}
        if interval:
            interval["confidence"] = settings.evaluation.confidence
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="eigenshift-run",
                dataset_name=f"run {facts.record.run_id} ({dataset})",
                metric_type=metric,
                metric_name=_name_metric(label, metric, row),
                metric_value=row["value"],
                metric_args=interval or None,
            )
        )
    return results


def _list_answers(facts: CardFacts, settings: RefreshSettings) -> Iterator[EvalResult]:
    """The exported arm's share of right answers to each task, by every metric of it."""
    for row in facts.benchmarks:
        if row["arm"] == facts.arm and row["task"] != ALL_TASKS:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=row["task"],
                dataset_name=f"{row['task']} ({row['n']} questions, lm-evaluation-harness)",
                metric_type=row["metric"],
                metric_name=f"{row['metric']}, {row['filter']}",
                metric_value=row["value"],
                metric_args={
                    "low": row["low"],
                    "high": row["high"],
                    "confidence": settings.evaluation.confidence,
                },
            )


def _name_metric(label: str, metric: str, row: Mapping[str, Any]) -> str:
    """The hub shows a name and a number: what must be said with the number is in the name."""
    if metric in REDUCTIONS and row["value"] < 0:
        return f"{label} (below 0: a rise)"
    if metric in TRADE_OFFS and row["low"] is not None and row["low"] <= 0:
        return f"{label} {HOLDS_ZERO}"
    return label
