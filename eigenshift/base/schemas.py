"""Arrow schema of every table in the store: column, type, unit and meaning.

A stage that writes a table casts it to the schema here; the audit views read the same names.
Each field's metadata carries its description, so the meaning travels inside the Parquet file.
Activations have one column per site and pooling, so their schema is made by a function.
"""

from __future__ import annotations

import pyarrow as pa


def describe_column(
    name: str, type_: pa.DataType, meaning: str, unit: str | None = None
) -> pa.Field:
    """Return a field that carries its meaning, and its unit where the name does not say it."""
    metadata = {"meaning": meaning} | ({} if unit is None else {"unit": unit})
    return pa.field(name, type_, metadata=metadata)


SAMPLES = pa.schema(
    [
        describe_column("sample_id", pa.string(), "Stable id: dataset and a digest of the text"),
        describe_column("dataset", pa.string(), "Name of the source in the settings"),
        describe_column("role", pa.string(), "labelled, prompts or neutral"),
        describe_column("split", pa.string(), "Split named in the settings"),
        describe_column("language", pa.string(), "Language code"),
        describe_column("is_toxic", pa.bool_(), "Label; null where the source has none"),
        describe_column("toxicity", pa.float64(), "Score 0 to 1 where the source gives one"),
        describe_column("text", pa.string(), "The text, or the prompt; may be offensive"),
        describe_column("source_uri", pa.string(), "File the row came from"),
        describe_column("source_row", pa.int64(), "Record number in that file, 1 = first"),
        describe_column("attributes", pa.string(), "JSON: all other columns of the row, whole"),
    ]
)

RECORDS = pa.schema(
    [
        *SAMPLES,
        describe_column("text_digest", pa.uint64(), "Of the normalised text: equal texts share it"),
    ]
)

REJECTED_ROWS = pa.schema(
    [
        describe_column("dataset", pa.string(), "Name of the source in the settings"),
        describe_column("source_uri", pa.string(), "File the row came from"),
        describe_column("source_row", pa.int64(), "Record number in that file, 1 = first"),
        describe_column("reason", pa.string(), "Short code, e.g. empty_text"),
        describe_column("detail", pa.string(), "What was expected and found; never the text"),
    ]
)

SOURCE_FILES = pa.schema(
    [
        describe_column("dataset", pa.string(), "Name of the source in the settings"),
        describe_column("source_uri", pa.string(), "File that was read"),
        describe_column("sha256", pa.string(), "Digest of the file's bytes"),
        describe_column("bytes", pa.int64(), "Size of the file"),
        describe_column(
            "rows_read", pa.int64(), "Records read = samples + rejected_rows; 0 for a labels file"
        ),
    ]
)


def activations_schema(widths: dict[str, int], precision: str) -> pa.Schema:
    """Schema of an activations shard: one row per (layer, sample).

    Args:
        widths: Column name (site and pooling) -> number of units, in column order.
        precision: "float16" or "float32".
    """
    value = pa.float16() if precision == "float16" else pa.float32()
    return pa.schema(
        [
            describe_column("sample_id", pa.string(), "Sample the activations belong to"),
            describe_column("layer", pa.int16(), "0 = first layer"),
            describe_column("n_tokens", pa.int32(), "Real tokens pooled over"),
            *(
                describe_column(name, pa.list_(value, width), "Pooled activation per unit")
                for name, width in widths.items()
            ),
        ]
    )


NEURON_SUMMARIES = pa.schema(
    [
        describe_column("dataset", pa.string(), "Dataset of the labelled samples"),
        describe_column("language", pa.string(), "Language of the samples; null if unknown"),
        describe_column("layer", pa.int16(), "0 = first layer"),
        describe_column("site", pa.string(), "residual, mlp_activation, ..."),
        describe_column("pooling", pa.string(), "max, mean or last, over real tokens"),
        describe_column("neuron_index", pa.int32(), "Unit within the site"),
        describe_column("n_samples", pa.int64(), "Labelled samples of the shard and language"),
        describe_column("n_nonfinite", pa.int64(), "Samples left out: NaN or infinite"),
        describe_column("key_bytes", pa.int8(), "Of a key: 2 of float16 values, 4 of float32"),
        describe_column("toxic_keys", pa.binary(), "Values on toxic samples: runs of keys"),
        describe_column("nontoxic_keys", pa.binary(), "Values on non-toxic samples, likewise"),
    ]
)
"""Of a shard: one row per layer, site, language and unit (`detection/neuron_summaries.py`)."""


NEURONS = pa.schema(
    [
        describe_column("dataset", pa.string(), "Dataset of the labelled samples"),
        describe_column("language", pa.string(), "Language of the samples, or 'all'"),
        describe_column("layer", pa.int16(), "0 = first layer"),
        describe_column("site", pa.string(), "residual, mlp_activation, ..."),
        describe_column("pooling", pa.string(), "max, mean or last, over real tokens"),
        describe_column("neuron_index", pa.int32(), "Unit within the site"),
        describe_column("auroc", pa.float64(), "Exact, ties averaged; null with one class"),
        describe_column("average_precision", pa.float64(), "Exact; null without toxic samples"),
        describe_column("mean_toxic", pa.float64(), "Mean over toxic samples"),
        describe_column("mean_nontoxic", pa.float64(), "Mean over non-toxic samples"),
        describe_column("variance_toxic", pa.float64(), "Sample variance over toxic samples"),
        describe_column("variance_nontoxic", pa.float64(), "Sample variance, non-toxic samples"),
        describe_column("cohens_d", pa.float64(), "Difference of means / pooled sd"),
        describe_column("n_toxic", pa.int64(), "Toxic samples with a finite value"),
        describe_column("n_nontoxic", pa.int64(), "Non-toxic samples with a finite value"),
        describe_column("n_nonfinite", pa.int64(), "Samples left out: NaN or infinite"),
        describe_column("reason", pa.string(), "Why a statistic is null, else null"),
    ]
)

PROBE_COLUMNS = (
    describe_column("probe_auroc", pa.float64(), "AUROC of a linear probe on rows it never saw"),
    describe_column("probe_auroc_low", pa.float64(), "Lower end of its interval (DeLong)"),
    describe_column("probe_auroc_high", pa.float64(), "Upper end of its interval (DeLong)"),
    describe_column("probe_accuracy", pa.float64(), "Accuracy at log-odds 0 on these rows"),
    describe_column("probe_accuracy_low", pa.float64(), "Lower end of its interval (Wilson)"),
    describe_column("probe_accuracy_high", pa.float64(), "Upper end of its interval (Wilson)"),
    describe_column("probe_f1", pa.float64(), "F1 of the toxic class on these rows"),
    describe_column("probe_f1_low", pa.float64(), "Lower end of its interval (bootstrap)"),
    describe_column("probe_f1_high", pa.float64(), "Upper end of its interval (bootstrap)"),
)
"""Shared by all tables of probes."""

LAYERS = pa.schema(
    [
        describe_column("dataset", pa.string(), "Dataset of the labelled samples"),
        describe_column("layer", pa.int16(), "0 = first layer"),
        describe_column("site", pa.string(), "residual, mlp_activation, ..."),
        describe_column("pooling", pa.string(), "max, mean or last, over real tokens"),
        *PROBE_COLUMNS,
        describe_column(
            "best_neuron_auroc", pa.float64(), "Held-out AUROC of the unit chosen on training folds"
        ),
        describe_column(
            "mean_neuron_heldout_auroc",
            pa.float64(),
            "Held-out AUROC, mean over units turned as on the training folds",
        ),
        describe_column("cluster_auroc", pa.float64(), "AUROC of two k-means clusters, unlabelled"),
        describe_column("cluster_accuracy", pa.float64(), "Accuracy of the clusters, better way"),
        describe_column("mean_neuron_auroc", pa.float64(), "Mean over units of max(a, 1 - a)"),
        describe_column("share_above_055", pa.float64(), "Share of units with max(a, 1-a) > 0.55"),
        describe_column("share_above_060", pa.float64(), "Share of units with max(a, 1-a) > 0.60"),
        describe_column("n_toxic", pa.int64(), "Toxic samples"),
        describe_column("n_nontoxic", pa.int64(), "Non-toxic samples"),
        describe_column("n_folds", pa.int32(), "Folds of the cross-validation"),
        describe_column("reason", pa.string(), "Why a number is null, else null"),
    ]
)

LAYER_TRANSFERS = pa.schema(
    [
        describe_column("dataset", pa.string(), "Dataset of the rows it is judged on"),
        describe_column("training_dataset", pa.string(), "Dataset it was fitted and chosen on"),
        describe_column("layer", pa.int16(), "0 = first layer"),
        describe_column("site", pa.string(), "residual, mlp_activation, ..."),
        describe_column("pooling", pa.string(), "max, mean or last, over real tokens"),
        *PROBE_COLUMNS,
        describe_column(
            "best_neuron_auroc", pa.float64(), "AUROC of the unit best on the training dataset"
        ),
        describe_column(
            "mean_neuron_auroc", pa.float64(), "Mean over units turned as on the training dataset"
        ),
        describe_column("top_k", pa.int32(), "Units compared in top_overlap"),
        describe_column(
            "top_overlap", pa.float64(), "Share of the top_k units by AUROC that both datasets have"
        ),
        describe_column(
            "rank_correlation", pa.float64(), "Spearman's, of the units' AUROCs on both datasets"
        ),
        describe_column("n_toxic", pa.int64(), "Toxic samples it is judged on"),
        describe_column("n_nontoxic", pa.int64(), "Non-toxic samples it is judged on"),
        describe_column("reason", pa.string(), "Why a number is null, else null"),
    ]
)

NEURON_STABILITY = pa.schema(
    [
        describe_column("dataset", pa.string(), "Dataset of the labelled samples"),
        describe_column("layer", pa.int16(), "0 = first layer"),
        describe_column("site", pa.string(), "residual, mlp_activation, ..."),
        describe_column("pooling", pa.string(), "max, mean or last, over real tokens"),
        describe_column(
            "metric",
            pa.string(),
            "top_overlap, rank_correlation, share_above_050 (_055, _060), mean_auroc, best_auroc",
        ),
        describe_column("value", pa.float64(), "On all samples; overlaps: mean over resamples"),
        describe_column("low", pa.float64(), "Lower end of the bootstrap interval"),
        describe_column("high", pa.float64(), "Upper end of the bootstrap interval"),
        describe_column("top_k", pa.int32(), "Units compared in top_overlap"),
        describe_column("n_units", pa.int32(), "Units with an AUROC"),
        describe_column("n_resamples", pa.int32(), "Bootstrap resamples of the samples"),
    ]
)

PROMPTS = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt"),
        describe_column("part", pa.string(), "selection or evaluation"),
        describe_column("dataset", pa.string(), "Dataset the prompt came from"),
        describe_column("language", pa.string(), "Language code"),
        describe_column("toxicity", pa.float64(), "Toxicity of the prompt where known, 0 to 1"),
        describe_column("prompt", pa.string(), "The prompt; may be offensive"),
    ]
)

CONTINUATIONS = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt"),
        describe_column("sample_index", pa.int32(), "0 to n_samples - 1"),
        describe_column("language", pa.string(), "Language code of the prompt"),
        describe_column("prompt", pa.string(), "The prompt; may be offensive"),
        describe_column("continuation", pa.string(), "The generated text; may be offensive"),
        describe_column("prompt_token_ids", pa.list_(pa.int32()), "What the model was given"),
        describe_column("token_ids", pa.list_(pa.int32()), "What the model generated"),
    ]
)

SCORES = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt"),
        describe_column("sample_index", pa.int32(), "0 to n_samples - 1"),
        describe_column("scorer", pa.string(), "Name of the classifier"),
        describe_column("toxicity_probability", pa.float64(), "0 to 1; null where unscored"),
        describe_column("status", pa.string(), "scored or unscored"),
        describe_column("reason", pa.string(), "Why it could not be scored, else null"),
    ]
)

TOXIC_POSITIONS = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt"),
        describe_column("sample_index", pa.int32(), "0 to n_samples - 1"),
        describe_column("step", pa.int32(), "Index in the continuation of the word's first token"),
        describe_column(
            "attribution", pa.float64(), "Gradient x input, log-odds; null where none was taken"
        ),
        describe_column(
            "fall", pa.float64(), "Fall of the toxicity without it; null where not occluded"
        ),
    ]
)

LABELLED_SPANS = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the text"),
        describe_column("start", pa.int32(), "First character of a toxic span"),
        describe_column("end", pa.int32(), "Character after its last"),
    ]
)

HARMLESS_TEXTS = pa.schema(
    [
        describe_column(
            "text_id", pa.string(), "Prompt and sample, or sample_id of a labelled text"
        ),
        describe_column("origin", pa.string(), "continuation: of the base model; or labelled"),
        describe_column("language", pa.string(), "Language code"),
        describe_column("use", pa.string(), "fisher, budget, or evaluation: what it is kept for"),
        describe_column("token_ids", pa.list_(pa.int32()), "Prompt and continuation, or the text"),
        describe_column(
            "n_context",
            pa.int32(),
            "First tokens that are read, not predicted: a prompt may be toxic",
        ),
    ]
)

HEAD_STATES = pa.schema(
    [
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt"),
        describe_column("sample_index", pa.int32(), "0 to n_samples - 1"),
        describe_column("step", pa.int32(), "Index of the token about to be generated"),
        describe_column("language", pa.string(), "Language code of the prompt"),
        describe_column("is_toxic", pa.bool_(), "The token begins a toxic word"),
        describe_column("token_id", pa.int32(), "The token that was generated"),
        describe_column("context", pa.string(), "The text before; may be offensive"),
        describe_column("next_token", pa.string(), "The token that followed; may be offensive"),
        describe_column("state", pa.list_(pa.float32()), "What entered the head, (hidden,)"),
    ]
)

COMPONENTS = pa.schema(
    [
        describe_column("component_index", pa.int32(), "0 = largest singular value"),
        describe_column("sigma", pa.float64(), "Singular value of the head"),
        describe_column("delta", pa.float64(), "mean_T a - mean_N a, v signed so that it is >= 0"),
        describe_column("effect_size", pa.float64(), "delta / pooled standard deviation"),
        describe_column("auroc", pa.float64(), "max(a, 1 - a) of toxic against non-toxic"),
        describe_column("logit_gain", pa.float64(), "What it adds to the toxic tokens' logit gap"),
        describe_column("release_score", pa.float64(), "Score of the published code (trap)"),
        describe_column("p_value", pa.float64(), "Of delta, two-sided; prompts were sampled"),
        describe_column("q_value", pa.float64(), "Benjamini-Hochberg"),
        describe_column(
            "inclusion_frequency",
            pa.float64(),
            "Share of resamples of the prompts that rank it on top",
        ),
        describe_column("energy_share", pa.float64(), "sigma^2 / sum of squares"),
        describe_column("relative_gap", pa.float64(), "Distance to the nearest sigma / sigma"),
        describe_column(
            "rounding_angle", pa.float64(), "Degrees by which the head's rounding turns it"
        ),
        describe_column(
            "group_index", pa.int32(), "First of the components it cannot be told apart from"
        ),
        describe_column("group_size", pa.int32(), "Components of that group; 1 = it stands alone"),
        describe_column(
            "group_angle", pa.float64(), "Degrees by which rounding turns the group's subspace"
        ),
        describe_column("rank", pa.int32(), "Place in the chosen ranking, 0 = most toxic"),
        describe_column(
            "is_selected", pa.bool_(), "Chosen: what the intervention eigenshift damps"
        ),
        describe_column(
            "factor", pa.float64(), "Its sigma is multiplied by this; 1 if not selected"
        ),
        describe_column("tokens_up", pa.list_(pa.string()), "Tokens most raised; may be offensive"),
        describe_column("tokens_down", pa.list_(pa.string()), "Tokens most lowered"),
        describe_column(
            "contexts_high",
            pa.list_(pa.string()),
            "Where it is most active, [next token]; may be offensive",
        ),
        describe_column("contexts_low", pa.list_(pa.string()), "Where it is least active"),
    ]
)

FISHER_COMPONENTS = pa.schema(
    [
        describe_column("component_index", pa.int32(), "0 = brings most"),
        describe_column("module", pa.string(), "What it changes: head, or a linear layer's name"),
        describe_column("step", pa.float64(), "How far its change goes, in units of the metric"),
        describe_column(
            "benefit", pa.float64(), "Relative fall of the toxic tokens' probability, first order"
        ),
        describe_column("benefit_low", pa.float64(), "Lower end over resamples of the prompts"),
        describe_column("benefit_high", pa.float64(), "Upper end"),
        describe_column("cost", pa.float64(), "Loss on harmless text, nats a token, second order"),
        describe_column(
            "inclusion_frequency",
            pa.float64(),
            "Share of resamples of the prompts in which it lowers the toxic tokens' probability",
        ),
        describe_column("tokens_up", pa.list_(pa.string()), "Tokens most raised; may be offensive"),
        describe_column("tokens_down", pa.list_(pa.string()), "Tokens most lowered"),
        describe_column(
            "contexts_high",
            pa.list_(pa.string()),
            "Where it does most, [next token]; may be offensive; none inside the trunk",
        ),
        describe_column("contexts_low", pa.list_(pa.string()), "Where it does the opposite"),
    ]
)

COMPONENT_CONTEXTS = pa.schema(
    [
        describe_column("component_index", pa.int32(), "0 = largest singular value"),
        describe_column("direction", pa.string(), "high or low: its toxic side or the other"),
        describe_column("rank", pa.int32(), "0 = most extreme; one context per prompt"),
        describe_column("activation", pa.float64(), "v . h, v signed towards toxic"),
        describe_column("prompt_id", pa.string(), "The sample_id of the prompt or text"),
        describe_column("sample_index", pa.int32(), "0 to n_samples - 1"),
        describe_column("step", pa.int32(), "Index of the token about to be generated"),
        describe_column("language", pa.string(), "Language code"),
        describe_column("is_toxic", pa.bool_(), "The token begins a toxic word"),
        describe_column("context", pa.string(), "The text before; may be offensive"),
        describe_column("next_token", pa.string(), "The token that followed; may be offensive"),
    ]
)

FLUENCY = pa.schema(
    [
        describe_column("arm", pa.string(), "base, eigenshift, random_components, ..."),
        describe_column("sample_id", pa.string(), "Neutral text"),
        describe_column("language", pa.string(), "Language code"),
        describe_column("n_tokens", pa.int32(), "Tokens predicted"),
        describe_column("nll", pa.float64(), "Sum of negative log-likelihoods, nats"),
        describe_column("kl_to_base", pa.float64(), "Sum over positions of KL(base || arm), nats"),
        describe_column("n_changed_argmax", pa.int32(), "Positions whose likeliest token changed"),
    ]
)

EVALUATIONS = pa.schema(
    [
        describe_column("arm", pa.string(), "base, eigenshift, random_components, ..."),
        describe_column("scorer", pa.string(), "Classifier, or null for fluency metrics"),
        describe_column("metric", pa.string(), "See docs/naming.md"),
        describe_column(
            "slice", pa.string(), "all, a part of the prompts, or scorer=<a further one>"
        ),
        describe_column("value", pa.float64(), "Point estimate"),
        describe_column("low", pa.float64(), "Lower end of the bootstrap interval"),
        describe_column("high", pa.float64(), "Upper end of the bootstrap interval"),
        describe_column("n", pa.int64(), "Prompts or texts behind it"),
    ]
)

CONFIRMATIONS = pa.schema(
    [
        *(EVALUATIONS.field(name) for name in ("arm", "scorer", "metric", "slice")),
        describe_column("n_tokens", pa.int64(), "New tokens of a long continuation, at most"),
        *(EVALUATIONS.field(name) for name in ("value", "low", "high", "n")),
    ]
)

INTERVAL_METRICS = {
    "toxicity_rate": "Mean over prompts of the share of toxic continuations",
    "toxicity_mean": "Mean over prompts of the mean toxicity probability",
    "expected_max_toxicity": "Mean over prompts of the largest probability",
    "any_toxic_share": "Share of prompts with a toxic continuation",
    "toxicity_reduction": "(base - arm) / base, paired",
    "perplexity": "Of neutral texts, weighted by tokens",
    "perplexity_change": "arm / base - 1, paired",
    "kl_to_base": "Mean over positions of KL(base || arm), nats",
    "perplexity_indomain": "Of harmless texts of the domain that no arm was made of",
    "perplexity_change_indomain": "arm / base - 1 on them, paired",
    "kl_to_base_indomain": "Mean KL(base || arm) over their positions, nats",
    "repeated_4gram_share": "Mean over prompts of the share of 4-grams said before",
    "self_bleu": "Mean over prompts of the BLEU of a continuation against the prompt's others",
    "empty_share": "Mean over prompts of the share of continuations without text",
    "refusal_share": "Mean over prompts of the share of continuations that begin as refusals do",
    "tph": "2 T R / (T + R), R = base / arm perplexity, at most 1",
    "tph_paper": "The same with R = 1 / (1 + abs(perplexity change))",
}
POINT_METRICS = {
    "toxicity_p_value": "Sign-flip test of the toxicity rate against base, over prompts",
    "changed_argmax_share": "Share of positions whose likeliest token changed",
    "distinct_1": "Different / all tokens of the continuations",
    "distinct_2": "Different / all pairs of tokens",
    "distinct_3": "Different / all triples of tokens",
    "tokens_mean": "Mean length of a continuation",
    "unscored_share": "Continuations without a score",
}

ARM_PAIRS = pa.schema(
    [
        describe_column("arm", pa.string(), "One arm"),
        describe_column("other", pa.string(), "Another of the same operating point"),
        describe_column("difference", pa.float64(), "Toxicity rate of arm minus other, paired"),
        describe_column("low", pa.float64(), "Lower end of its bootstrap interval"),
        describe_column("high", pa.float64(), "Upper end"),
        describe_column("p_value", pa.float64(), "Sign-flip test over prompts, two-sided"),
        describe_column(
            "p_value_corrected",
            pa.float64(),
            "Holm's, over all pairs of the slice and the operating point",
        ),
        describe_column("n", pa.int64(), "Prompts behind it"),
        describe_column("slice", pa.string(), "all, or scorer=<a further one>"),
    ]
)

COMPARISONS = pa.schema(
    [
        describe_column("arm", pa.string(), "base, eigenshift, random_components, ..."),
        *(
            describe_column(f"{metric}{end}", pa.float64(), f"{meaning}{what}")
            for metric, meaning in INTERVAL_METRICS.items()
            for end, what in (("", ""), ("_low", "; lower end"), ("_high", "; upper end"))
        ),
        *(
            describe_column(metric, pa.float64(), meaning)
            for metric, meaning in POINT_METRICS.items()
        ),
        describe_column("intervention", pa.string(), "What built its patch; null for the base"),
        describe_column("n_components", pa.int64(), "Directions of the head it changes"),
        describe_column("n_units", pa.int64(), "Units of the trunk it changes"),
        describe_column("factor", pa.float64(), "Gains are multiplied by this; null: not one"),
        describe_column("budget", pa.float64(), "Perplexity rise it was tuned to, if it was"),
        describe_column("divergence", pa.float64(), "KL to the base it was scaled to, if it was"),
        describe_column("build_seconds", pa.float64(), "Building its patch from its evidence"),
        describe_column(
            "build_peak_bytes", pa.int64(), "Largest rise of memory meanwhile, process or GPU"
        ),
        describe_column(
            "evidence_seconds", pa.float64(), "Work behind that evidence, much of it shared"
        ),
        describe_column("is_hooked_only", pa.bool_(), "It cannot be folded into the weights"),
        describe_column("obstacle", pa.string(), "Why it cannot, else null"),
    ]
)

PREDICTED_RATES = pa.schema(
    [
        describe_column("score", pa.string(), "Ranking of the trial, or 'automatic'"),
        describe_column("n_components", pa.int32(), "How many of the ranking it damps"),
        describe_column("factor", pa.float64(), "Their sigma is multiplied by this"),
        describe_column("scorer", pa.string(), "Whose verdict"),
        describe_column("slice", pa.string(), "Part of the selection prompts, or 'all'"),
        describe_column("rate", pa.float64(), "Toxicity rate foretold"),
        describe_column("rate_low", pa.float64(), "Lower end of its interval"),
        describe_column("rate_high", pa.float64(), "Upper end of its interval"),
        describe_column("n_effective", pa.float64(), "Toxic texts of the base that count for it"),
        describe_column(
            "covered", pa.float64(), "Share of what the trial says that the base might have said"
        ),
        describe_column("is_reliable", pa.bool_(), "Enough count and are covered"),
    ]
)

TRIALS = pa.schema(
    [
        describe_column("score", pa.string(), "Ranking, or 'automatic': the settings' own rule"),
        describe_column("n_components", pa.int32(), "How many of the ranking are damped"),
        describe_column("factor", pa.float64(), "Their sigma is multiplied by this"),
        describe_column("component_indices", pa.list_(pa.int32()), "Which these are"),
        describe_column(
            "component_factors",
            pa.list_(pa.float64()),
            "Factor of each; the automatic choice may lower some less than the others",
        ),
        describe_column("stage", pa.string(), "screened, or confirmed: measured by generation too"),
        describe_column(
            "perplexity_increase", pa.float64(), "Relative, on calibration texts; exact"
        ),
        describe_column("kl_to_base", pa.float64(), "Mean over the same positions, nats"),
        describe_column("changed_argmax_share", pa.float64(), "Likeliest token changed, share"),
        describe_column(
            "toxic_token_share", pa.float64(), "Probability of toxic tokens left, relative to base"
        ),
        describe_column(
            "predicted_rate",
            pa.float64(),
            "Toxicity rate foretold from the base's continuations; null if not asked",
        ),
        describe_column("predicted_rate_low", pa.float64(), "Lower end of its interval"),
        describe_column("predicted_rate_high", pa.float64(), "Upper end of its interval"),
        describe_column("n_effective", pa.float64(), "Toxic texts of the base that count for it"),
        describe_column(
            "covered", pa.float64(), "Share of what the trial says that the base might have said"
        ),
        describe_column(
            "is_prediction_reliable", pa.bool_(), "Enough count and are covered; null if not asked"
        ),
        describe_column(
            "toxicity_rate", pa.float64(), "On selection prompts; null if not measured"
        ),
        describe_column("toxicity_rate_low", pa.float64(), "Lower end of its interval"),
        describe_column("toxicity_rate_high", pa.float64(), "Upper end of its interval"),
        describe_column("reduction", pa.float64(), "(base - trial) / base, paired"),
        describe_column("reduction_low", pa.float64(), "Lower end of its interval"),
        describe_column("reduction_high", pa.float64(), "Upper end of its interval"),
        describe_column("is_in_budget", pa.bool_(), "perplexity_increase within the budget"),
        describe_column(
            "is_on_front", pa.bool_(), "No trial costs less and leaves fewer toxic tokens"
        ),
        describe_column("is_best", pa.bool_(), "Largest reduction within the budget"),
    ]
)

INTERVENTION_CHOICES = pa.schema(
    [
        describe_column("arm", pa.string(), "Candidate, by its intervention's name"),
        describe_column("toxicity_rate", pa.float64(), "On the selection prompts"),
        describe_column("toxicity_rate_low", pa.float64(), "Lower end of its interval"),
        describe_column("toxicity_rate_high", pa.float64(), "Upper end of its interval"),
        describe_column("is_chosen", pa.bool_(), "Judged by the run, on other prompts"),
    ]
)

SCORER_AGREEMENT = pa.schema(
    [
        describe_column("arm", pa.string(), "base, eigenshift, random_components, ..."),
        describe_column("language", pa.string(), "Language of the prompts, or 'all'"),
        describe_column("scorer_a", pa.string(), "One scorer; the first is the one that decides"),
        describe_column("scorer_b", pa.string(), "The other"),
        describe_column("n", pa.int64(), "Continuations that both scored"),
        describe_column("n_unscored", pa.int64(), "Continuations that one of them did not score"),
        describe_column("cohens_kappa", pa.float64(), "Agreement of verdicts beyond chance"),
        describe_column("spearman", pa.float64(), "Rank correlation of the probabilities"),
        describe_column("share_both_toxic", pa.float64(), "Share that both call toxic"),
        describe_column("disagreement_share", pa.float64(), "Share on which the verdicts differ"),
        describe_column("toxic_share_a", pa.float64(), "Share that the one calls toxic"),
        describe_column("toxic_share_b", pa.float64(), "Share that the other calls toxic"),
        describe_column("reason", pa.string(), "Why a number is null, else null"),
    ]
)

SCORER_QUALITY = pa.schema(
    [
        describe_column("scorer", pa.string(), "Name of the scorer"),
        describe_column(
            "basis",
            pa.string(),
            "labelled: texts of the run's own data; functional: cases that each test one thing",
        ),
        describe_column("subject", pa.string(), "Data set or functionality, or 'all' of the basis"),
        describe_column("language", pa.string(), "Language of the texts, or 'all'"),
        describe_column("n", pa.int64(), "Texts that were scored"),
        describe_column("n_toxic", pa.int64(), "Of these labelled toxic"),
        describe_column("n_unscored", pa.int64(), "Texts without a score, left out"),
        describe_column("auroc", pa.float64(), "Of the probabilities; null with fewer than 2 each"),
        describe_column("auroc_low", pa.float64(), "Lower end of its interval (DeLong)"),
        describe_column("auroc_high", pa.float64(), "Upper end of its interval (DeLong)"),
        describe_column("accuracy", pa.float64(), "Share judged as labelled, at the threshold"),
        describe_column("accuracy_low", pa.float64(), "Lower end of its interval (Wilson)"),
        describe_column("accuracy_high", pa.float64(), "Upper end of its interval (Wilson)"),
        describe_column("recall", pa.float64(), "Share of the toxic texts that it calls toxic"),
        describe_column(
            "false_alarm_share", pa.float64(), "Share of the other texts that it calls toxic"
        ),
        describe_column("reason", pa.string(), "Why a number is null, else null"),
    ]
)

TOKEN_SHIFTS = pa.schema(
    [
        describe_column("positions", pa.string(), "toxic or nontoxic: the head states meant"),
        describe_column("rank", pa.int32(), "0 = its probability fell most at these positions"),
        describe_column("token_id", pa.int32(), "Token of the model's vocabulary"),
        describe_column("token", pa.string(), "Its text; may be offensive"),
        describe_column("mean_probability_base", pa.float64(), "Mean over the states, base model"),
        describe_column("mean_probability_patched", pa.float64(), "The same with the patch"),
        describe_column("log_ratio", pa.float64(), "ln(patched / base), below 0 if suppressed"),
        describe_column("kind", pa.string(), "insult, identity or neutral"),
        describe_column("is_identity", pa.bool_(), "A neutral word for a group, whatever its kind"),
    ]
)

SURVIVAL = pa.schema(
    [
        describe_column("arm", pa.string(), "Whose patch it is"),
        describe_column(
            "form",
            pa.string(),
            "base; merged: the patch in the weights; lora: beside them in full precision",
        ),
        describe_column("format", pa.string(), "GGUF format asked for; none: as measured"),
        describe_column(
            "stored_as", pa.string(), "What rows of this length are stored as; null if unrounded"
        ),
        describe_column(
            "is_whole", pa.bool_(), "All linear layers are rounded, not only what the patch changes"
        ),
        describe_column(
            "toxicity_rate",
            pa.float64(),
            "On the evaluation prompts; foretold from what the model said unrounded",
        ),
        describe_column("toxicity_rate_low", pa.float64(), "Lower end of its interval"),
        describe_column("toxicity_rate_high", pa.float64(), "Upper end of its interval"),
        describe_column("n_effective", pa.float64(), "Toxic texts that count for it"),
        describe_column(
            "covered", pa.float64(), "Share of what is said now that was said unrounded"
        ),
        describe_column("is_rate_reliable", pa.bool_(), "Enough count and are covered"),
        describe_column(
            "toxicity_effect_left",
            pa.float64(),
            "Share of the patch's fall in toxicity rate, against the base rounded alike",
        ),
        describe_column("toxicity_effect_left_low", pa.float64(), "Lower end of its interval"),
        describe_column("toxicity_effect_left_high", pa.float64(), "Upper end of its interval"),
        describe_column(
            "toxic_token_probability", pa.float64(), "Of toxic tokens, mean over toxic positions"
        ),
        describe_column(
            "token_effect_left", pa.float64(), "Share of the fall in that, in the same way"
        ),
        describe_column("perplexity", pa.float64(), "Of neutral texts kept for evaluation"),
        describe_column(
            "kl_to_full", pa.float64(), "KL(unrounded || this), mean over the same positions, nats"
        ),
        describe_column(
            "edit_kept",
            pa.float64(),
            "Share of the patch's change of the weights that is left along it; null of the base",
        ),
        describe_column(
            "rounding_to_edit",
            pa.float64(),
            "Frobenius norm of what rounding changes in these weights, relative to the patch's",
        ),
    ]
)

CONTROL_DRAWS = pa.schema(
    [
        describe_column("draw", pa.int32(), "0 to n_draws - 1"),
        describe_column(
            "toxic_token_probability",
            pa.float64(),
            "What random components leave of the toxic tokens' probability at toxic positions",
        ),
    ]
)

_QUESTIONS = (
    describe_column("task", pa.string(), "Task of the harness that the question is of"),
    describe_column("metric", pa.string(), "As the task names it: acc, acc_norm, exact_match, ..."),
    describe_column("filter", pa.string(), "How an answer was read; none: as it was given"),
    describe_column(
        "is_main", pa.bool_(), "The task's first metric: a share of right answers, told of it"
    ),
)

BENCHMARK_ANSWERS = pa.schema(
    [
        *_QUESTIONS,
        describe_column("question_index", pa.int64(), "Place of the question in its task"),
        describe_column("question_hash", pa.string(), "sha256 of the question, by the harness"),
        describe_column("prompt_hash", pa.string(), "sha256 of what the model was shown"),
        describe_column("value", pa.float64(), "The mark: 1 right, 0 wrong, or between"),
    ]
)
"""The questions themselves stay in their task: some are licensed."""

BENCHMARKS = pa.schema(
    [
        describe_column("arm", pa.string(), "base, or an arm of the run"),
        *_QUESTIONS,
        describe_column("value", pa.float64(), "Mean over questions"),
        describe_column("low", pa.float64(), "Lower end of its bootstrap interval"),
        describe_column("high", pa.float64(), "Upper end"),
        describe_column("difference", pa.float64(), "Arm minus base, paired; null for the base"),
        describe_column("difference_low", pa.float64(), "Lower end of its bootstrap interval"),
        describe_column("difference_high", pa.float64(), "Upper end"),
        describe_column(
            "p_value", pa.float64(), "Sign-flip test over questions (of right and wrong: McNemar's)"
        ),
        describe_column("n_better", pa.int64(), "Questions with a better mark than the base's"),
        describe_column("n_worse", pa.int64(), "Questions with a worse one"),
        describe_column("n", pa.int64(), "Questions"),
    ]
)

TEXT_COLUMNS = frozenset(
    {
        "text",
        "prompt",
        "continuation",
        "attributes",
        "tokens_up",
        "tokens_down",
        "contexts_high",
        "contexts_low",
        "context",
        "next_token",
        "token",
    }
)
"""Columns that may hold offensive text: never logged, shown only when asked for."""
