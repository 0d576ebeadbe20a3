"""Methods against each other on a real model: `make bench-real`, which writes a page in docs/.

    python tests/benchmarks/bench_real_model.py [--presets smollm2,smollm2-chat] [--set KEY=VALUE]

`eigenshift compare` with each preset in a store of its own below `.benchmarks/`, so a second start
goes on where the first one stopped. The model and the scorer must be there (`make real-model`), and
the public data where the presets look for it (data/README.md). Writes figures and pictures, never
text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bars import RESULTS, ROOT, describe_machine

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.capability import find_headline
from eigenshift.evaluation.stages import CHART_NAME
from eigenshift.ledger.runs import read_run
from eigenshift.reporting.outcomes import ArmComparison, format_difference, format_estimate
from eigenshift.settings import RefreshSettings, load_preset
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from flows.prefect_environment import create_home, prepare_environment

PAGE = ROOT / "docs" / "results.md"
NAME = "real_model"
OURS = ("eigenshift_fisher", "eigenshift_fisher_deep")
RIVALS = ("token_suppression", "linear_act")
INTRODUCTION = """# Results on a real model

Written by `make bench-real`; no figure is copied by hand. Falls of the toxicity rate are paired by
prompt, with 95% intervals over prompts. Every arm's strength spends the same budget on the same
calibration texts ([0049](decisions/0049-cost-in-domain.md)). *Hooked*: runs inside the model and
cannot be exported as weights. Where the data is from, and its licences: `data/README.md`.

The judge is a classifier of words (`profanity-check`): no learned scorer that reads sentences can
be had without a hub. It gives most to what removes single tokens, and says nothing of insults
without such words. `base_again` is the base with other random numbers: what chance alone does."""


def compare(preset: str, overrides: Sequence[str]) -> dict[str, Any]:
    """All that the page says of one preset."""
    from flows.compare import run_compare  # Prefect reads its environment when it is imported

    store = str(RESULTS / NAME / preset)
    settings = load_preset(preset, [f"store={store}", *overrides])
    with counting_minutes(RESULTS / NAME / f"{preset}.minutes") as minutes:
        comparison = run_compare(settings)
    artifacts = ArtifactStore(store)
    record = read_run(artifacts.store, comparison.run_id)
    evaluation = artifacts.open(record.find_artifact("evaluation"))
    picture = PAGE.parent / "images" / f"results-{preset}.png"
    shutil.copy(artifacts.open(record.find_artifact("comparison")).fetch(CHART_NAME), picture)
    return {
        "preset": preset,
        "overrides": list(overrides),
        "sizes": describe_sizes(settings),
        "arms": comparison.arms,
        "base": find_base(comparison),
        "pairs": [
            row
            for row in evaluation.read_table(tables.ARM_PAIRS.file).to_pylist()
            if row["slice"] == "all" and row["arm"] in OURS and row["other"] in RIVALS
        ],
        "answers": {
            row["arm"]: [
                format_estimate(find_headline(comparison.benchmarks, row["arm"]), "percent"),
                format_difference(find_headline(comparison.benchmarks, row["arm"])),
            ]
            for row in comparison.arms
            if comparison.benchmarks
        },
        "notes": [note for note in comparison.notes if "AUROC" in note],
        "picture": picture.name,
        "minutes": round(minutes()),
        "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
    }


@contextmanager
def counting_minutes(file: Path) -> Iterator[Callable[[], float]]:
    """Add the minutes inside to those in a file: a comparison that was cut off began earlier."""
    before = float(file.read_text()) if file.exists() else 0.0
    started = time.monotonic()
    try:
        yield lambda: float(file.read_text())
    finally:
        file.write_text(f"{before + (time.monotonic() - started) / 60:.2f}\n")


def describe_sizes(settings: RefreshSettings) -> dict[str, int]:
    """How much text the figures rest on."""
    return {
        "prompts": settings.prompts.n_evaluation,
        "continuations of each": settings.generation.n_samples,
        "tokens of each": settings.generation.n_tokens,
        "selection prompts": settings.prompts.n_selection,
    }


def find_base(comparison: ArmComparison) -> dict[str, float]:
    """The base's own toxicity rate and perplexities."""
    return {
        row["metric"]: row["value"]
        for row in comparison.evaluations
        if row["arm"] == BASE_ARM and row["slice"] == "all" and row["value"] is not None
    }


def write_page(found: Sequence[Mapping[str, Any]]) -> None:
    """Put what was measured into `PAGE`."""
    parts = [INTRODUCTION, *(describe(result) for result in found)]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def describe(result: Mapping[str, Any]) -> str:
    """A section of the page."""
    command = " ".join(
        [f"eigenshift compare --preset {result['preset']}"]
        + [f"--set {override}" for override in result["overrides"]]
    )
    sizes = ", ".join(f"{count} {what}" for what, count in result["sizes"].items())
    machine, base = result["machine"], result["base"]
    place = f"{machine['processor']}, {machine['n_cores']} cores ({result['measured_at']})"
    intro = (
        f"`{command}`: {sizes}; {result['minutes']} minutes on {place}.\n"
        f"Unpatched, {_percent(base['toxicity_rate'])} of the continuations are toxic, at a "
        f"perplexity of {base['perplexity']:.1f}."
    )
    if base_answers := result["answers"].get(BASE_ARM):
        intro += f" It gets {base_answers[0]} of the questions right; arms are paired with it."
    intro = "\n".join([intro, *result["notes"]])
    arms = [row for row in result["arms"] if row["arm"] != BASE_ARM]
    arms.sort(key=lambda row: -(row["toxicity_reduction"] or -9.0))
    table = [
        "| arm | toxicity falls by | perplexity | in-domain | KL, nats a token | repeated 4-grams "
        "| questions right |",
        "|---|---|---|---|---|---|---|",
        *(
            _describe_arm(row, result["answers"])
            for row in arms
            if row["toxicity_reduction"] is not None
        ),
    ]
    pairs = [
        "| paired, in points of the rate | difference | p (Holm) |",
        "|---|---|---|",
        *(
            f"| {row['arm']} minus {row['other']} | {100 * row['difference']:+.1f} "
            f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}] | {row['p_value_corrected']:.4f} |"
            for row in result["pairs"]
        ),
    ]
    return "\n\n".join(
        [
            f"## {result['preset']}",
            intro,
            "\n".join(table),
            "\n".join(pairs),
            f"![Toxicity against cost, {result['preset']}](images/{result['picture']})",
        ]
    )


def _describe_arm(row: Mapping[str, Any], answers: Mapping[str, Sequence[str]]) -> str:
    cells = [
        f"{row['arm']}{' (hooked)' if row['is_hooked_only'] else ''}",
        _interval(row, "toxicity_reduction"),
        _signed(row["perplexity_change"]),
        _signed(row["perplexity_change_indomain"]),
        f"{row['kl_to_base']:.4f}",
        f"{100 * row['repeated_4gram_share']:.2f}%",
        " ".join(answers.get(row["arm"], ["-"])),
    ]
    return f"| {' | '.join(cells)} |"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = (100 * row[f"{name}_{side}"] for side in ("low", "high"))
    return f"{_percent(row[name])} [{low:.1f}, {high:.1f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}%"


def main() -> None:
    """Compare with each preset; the page has all that was ever measured."""
    parser = argparse.ArgumentParser(description="Methods against each other on a real model.")
    parser.add_argument("--presets", default="smollm2,smollm2-chat")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    prepare_environment()
    create_home()
    folder = RESULTS / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for preset in arguments.presets.split(","):
        result = compare(preset, arguments.overrides)
        (folder / f"{preset}.json").write_text(json.dumps(result, indent=2) + "\n")
    write_page([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))])


if __name__ == "__main__":
    main()
