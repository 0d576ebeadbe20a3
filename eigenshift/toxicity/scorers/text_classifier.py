"""Any Hugging Face text classifier: a folder, a URL or a hub id, safetensors only.

The toxic label is found by name or index. Class scores become a probability as the model's own
configuration says: softmax, or sigmoid where labels do not exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eigenshift.base.errors import ScorerError
from eigenshift.settings import PlainScorerSettings, VerdictRule
from eigenshift.toxicity.scorers.pretrained import load_pretrained
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier, wrap_classifier

MULTI_LABEL = "multi_label_classification"


def load_text_classifier(settings: PlainScorerSettings) -> OpenClassifier:
    """Load a text classifier.

    Raises:
        ScorerError: It cannot be loaded, its head is not in the files, or it has no such label.
    """
    model, tokenizer = load_pretrained(
        settings, "AutoModelForSequenceClassification", "a text classifier"
    )
    place = find_label(settings, model.config.id2label)
    return wrap_classifier(model, tokenizer, choose_verdict(settings, model.config, place))


def find_label(settings: PlainScorerSettings, labels: Mapping[int, str]) -> int:
    """Index of the toxic label, given by name (upper or lower case) or by index.

    Raises:
        ScorerError: There is no such label.
    """
    wanted = settings.effective_label
    for index, name in labels.items():
        if str(name).casefold() == wanted.casefold():
            return int(index)
    if wanted.isdecimal() and int(wanted) in labels:
        return int(wanted)
    known = ", ".join(f"{index}: {name}" for index, name in labels.items())
    raise ScorerError(
        f"scorer {settings.name}: expected a label {wanted!r}, found {known}. Set scorer.label to "
        "the name or index of the toxic one."
    )


def choose_verdict(
    settings: PlainScorerSettings, configuration: Any, place: int
) -> Callable[[Tensor], Tensor]:
    """How class scores (batch, class) become a probability of being toxic (batch,).

    Under `argmax` it is the toxic label's probability against its strongest rival's, so it is above
    0.5 exactly where the toxic label is the likeliest; with two labels that is the softmax itself.

    Raises:
        ScorerError: Labels that do not exclude each other have no argmax.
    """
    n_labels = configuration.num_labels
    is_exclusive = n_labels > 1 and getattr(configuration, "problem_type", None) != MULTI_LABEL
    if settings.verdict is VerdictRule.argmax and not is_exclusive:
        raise ScorerError(
            f"scorer {settings.name}: expected labels that exclude each other for verdict argmax, "
            f"found {n_labels} label(s) with a probability each. Set scorer.verdict: probability."
        )
    others = [index for index in range(n_labels) if index != place]

    def judge(class_scores: Tensor) -> Tensor:
        if not is_exclusive:
            return torch.sigmoid(class_scores[:, place])
        if settings.verdict is VerdictRule.argmax:
            return torch.sigmoid(class_scores[:, place] - class_scores[:, others].amax(1))
        return torch.softmax(class_scores, dim=1)[:, place]

    return judge
