"""Any Hugging Face text classifier: a folder, a URL or a hub id, safetensors only.

The toxic label is found by name or index. Class scores become a probability as the model's own
configuration says: softmax, or sigmoid where labels do not exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eigenshift.base.errors import ModelError, ScorerError
from eigenshift.model.files import ModelIdentity, identify_model
from eigenshift.settings import ModelSettings, PlainScorerSettings, VerdictRule
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier, wrap_classifier

MULTI_LABEL = "multi_label_classification"


def identify_classifier(settings: PlainScorerSettings) -> ModelIdentity:
    """Find and digest the classifier's files.

    Raises:
        ScorerError: They are missing, incomplete or pickled.
    """
    try:
        return identify_model(ModelSettings(id=settings.model or "", revision=settings.revision))
    except ModelError as error:
        message = str(error).replace("model.id", "scorer.model")
        raise ScorerError(f"scorer {settings.name}: {message}") from error


def load_text_classifier(settings: PlainScorerSettings) -> OpenClassifier:
    """Load a text classifier.

    Raises:
        ScorerError: It cannot be loaded, its head is not in the files, or it has no such label.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = str(identify_classifier(settings).folder)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise ScorerError(
            f"scorer {settings.name}: expected a text classifier with its tokenizer in "
            f"{settings.model}, found {type(error).__name__}. Check scorer.model; code shipped "
            "with a model is never run."
        ) from error
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:
        raise ScorerError(
            f"scorer {settings.name}: expected weights for all of {type(model).__name__} in "
            f"{settings.model}, found none for {', '.join(missing[:3])}. They would be random "
            "numbers: this is not a trained classifier. Choose another scorer.model."
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
