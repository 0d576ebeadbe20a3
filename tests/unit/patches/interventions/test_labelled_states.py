"""Labelled texts and the states on them: for calibration only, and as the model has them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.base.errors import ComponentError
from eigenshift.components.text_halves import is_calibration_text
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.labelled_states import (
    average_outputs,
    choose_texts,
    encode_texts,
    list_norms,
)


def test_texts_for_evaluation_are_left_out(evidence: Evidence) -> None:
    """Harmless text that arms are judged by is not what they are made of."""
    samples = evidence.labelled_texts.to_pylist()
    usable = {row["text"] for row in samples if is_calibration_text(row["sample_id"])}
    assert len(usable) < len(samples)
    toxic, nontoxic = choose_texts(evidence.labelled_texts, 0)
    assert {*toxic, *nontoxic} <= usable


def test_no_more_are_drawn_than_asked_for(evidence: Evidence) -> None:
    """As many of each class."""
    assert [len(part) for part in choose_texts(evidence.labelled_texts, 0, 3)] == [3, 3]


def test_a_class_without_texts_is_refused() -> None:
    """Nothing can be learned from one class."""
    texts = pa.table({"sample_id": ["a", "b"], "text": ["x", "y"], "is_toxic": [True, False]})
    with pytest.raises(ComponentError, match="expected at least 2 of each class"):
        choose_texts(texts, 0)


def test_means_are_those_of_one_text_at_a_time(evidence: Evidence) -> None:
    """All norms in one padded pass, or one that is cut short: means over the tokens that count."""
    model = evidence.language_model
    encoded = encode_texts(model, evidence.labelled_texts["text"].to_pylist()[:7])
    texts = [
        text._replace(counted=slice(place % 3, len(text.token_ids) - place % 2))
        for place, text in enumerate(encoded)
    ]
    names = list_norms(model)
    found = average_outputs(model, names, texts)
    alone = average_outputs(model, names[:1], texts)[names[0]]
    np.testing.assert_allclose(alone, found[names[0]], atol=1e-6)
    for name in names:
        seen: list[torch.Tensor] = []
        module = model.model.get_submodule(name)
        handle = module.register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output))
        with torch.inference_mode():
            for text in texts:
                model.model(torch.tensor([text.token_ids]))
        handle.remove()
        expected = np.stack(
            [
                output[0][text.counted].double().mean(0).numpy()
                for text, output in zip(texts, seen, strict=True)
            ]
        )
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert not any(module._forward_hooks for module in model.model.modules())
