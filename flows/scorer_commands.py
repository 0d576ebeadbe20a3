"""Commands about scorers themselves: train one on labelled texts, fetch one, without a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eigenshift.settings import (
    DetectionSettings,
    FittingMethod,
    IngestionSettings,
    NgramChoice,
    Role,
    SourceSettings,
    TrainingSettings,
    parse_source,
)
from flows.options import ConfigOption, JsonOption, PresetOption, SetOption, console, load

app = typer.Typer()
DEFAULTS = TrainingSettings()
OutOption = Annotated[Path, typer.Option("--out", help="New or empty folder.")]


@app.command("fetch-scorer")
def fetch_scorer(
    name: Annotated[str, typer.Argument(help="Which scorer: profanity-check.")],
    out: OutOption,
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", help="The package's wheel, to do without a package index."),
    ] = None,
) -> None:
    """Make a linear scorer's folder out of a package of the Python package index."""
    from eigenshift.fetching.scorers import fetch_scorer as fetch

    fetched = fetch(name, out, wheel)
    title = fetched.scorer.title
    _say(
        f"Wrote {title}: {out}"
        if fetched.is_new
        else f"{title} is there already, unchanged: {out}. Nothing to do."
    )
    _suggest(out)


@app.command("train-scorer")
def train_scorer(
    out: OutOption,
    preset: PresetOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            help="In place of settings: labelled texts, {format: jigsaw, uri: FILE}. Repeat.",
        ),
    ] = None,
    ngrams: Annotated[NgramChoice, typer.Option(help="Which n-grams it reads.")] = DEFAULTS.ngrams,
    method: Annotated[FittingMethod, typer.Option(help="What weighs them.")] = DEFAULTS.method,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the texts to measure it on.")
    ] = DEFAULTS.held_out_share,
    seed: Annotated[int, typer.Option(min=0, help="Which texts these are.")] = DEFAULTS.seed,
    as_json: JsonOption = False,
) -> None:
    """Train a linear scorer on labelled texts, those of a run's settings or of files."""
    from eigenshift.toxicity.scorer_quality import describe_quality
    from eigenshift.toxicity.scorer_training import train_scorer as train

    labelled, ingestion = _choose_texts(preset, config, overrides, sources)
    choices = TrainingSettings(ngrams=ngrams, method=method, held_out_share=held_out, seed=seed)
    trained = train(labelled, ingestion, choices, out)
    if as_json:
        contract = {
            "folder": str(out),
            "digest": trained.digest,
            "n_ngrams": trained.n_ngrams,
            **asdict(trained.quality),
        }
        print(json.dumps(contract))  # noqa: T201 - the contract's output
        return
    _say(f"Wrote a linear scorer of {trained.n_ngrams:,} n-grams: {out}")
    _say(f"  {describe_quality(trained.quality)}")
    _suggest(out)


def _choose_texts(
    preset: str | None, config: Path | None, overrides: list[str] | None, sources: list[str] | None
) -> tuple[tuple[SourceSettings, ...], IngestionSettings]:
    if not sources:
        settings = load(
            DetectionSettings, preset=preset, config=config, store=None, overrides=overrides
        )
        return settings.sources_for(Role.labelled), settings.ingestion
    if preset is not None or config is not None or overrides:
        raise typer.BadParameter("give either settings (--preset, --config) or --source")
    parsed = [parse_source(text, f"source-{n}") for n, text in enumerate(sources, start=1)]
    return tuple(parsed), IngestionSettings()


def _suggest(out: Path) -> None:
    """What to type next."""
    _say("Next, try:")
    _say(
        "  eigenshift doctor --preset demo --set "
        f"'scorer={{kind: linear, model: {json.dumps(str(out.absolute()))}}}'"
    )


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
