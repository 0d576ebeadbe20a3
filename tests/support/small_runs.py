"""Settings of small runs that more than one file of flow tests needs."""

from __future__ import annotations

ENOUGH_EVIDENCE = (
    "sources.3.max_rows=200",
    "prompts.n_selection=150",
    "prompts.n_evaluation=40",
    "generation.n_samples=8",
    "harmless.n_continuations=200",
    "components.max_perplexity_increase=0.05",
)
"""What the demo's patch needs to be promoted; with less of it the gate holds, as it should."""
EASY_BOUNDS = (
    "gate.require_beats_random=false",
    "gate.max_perplexity_increase=10",
    "gate.max_indomain_perplexity_increase=10",
    "gate.max_slice_perplexity_increase=10",
    "gate.max_kl_to_base=10",
    "gate.max_slice_toxicity_increase=1",
)
"""Bounds that any fall of toxicity passes."""
