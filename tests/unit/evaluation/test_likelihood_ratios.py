"""Likelihood ratios against transformers' own warpers, one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from eigenshift.evaluation import predicted_rates
from eigenshift.evaluation.bootstrap import draw_counts
from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
from eigenshift.evaluation.predicted_rates import choose_texts, predict_rate
from eigenshift.generation.decoding import HeadBranch, sample_batch
from eigenshift.generation.sampling import draw_keys
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, LinearEdit, LogitEdit, ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.settings import GenerationSettings

PROMPTS = [[5, 9, 40], [77], [12, 13, 14, 15, 200, 31]]
N_PROMPTS, N_SAMPLES, N_TOKENS = len(PROMPTS), 10, 6


def make_edits(model: LanguageModel) -> dict[str, ModelEdit]:
    """One of each kind."""
    hidden, vocab = model.head.hidden, model.head.vocab
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    v = np.linalg.qr(draw(hidden, 3).numpy())[0]
    target = np.array([0.5, -0.2, 0.1])
    head = HeadEdit.scale_directions(v, 0.2, target)
    logits = LogitEdit(0.03 * draw(vocab, 2), draw(hidden, 2), draw(2))
    linear = LinearEdit(0.08 * draw(hidden, 2), draw(hidden, 2))
    return {
        "head": ModelEdit(head=head),
        "logits": ModelEdit(logits=logits),
        "both": ModelEdit(head=head, logits=logits),
        "trunk": ModelEdit(linears={"transformer.h.0.attn.c_proj": linear}),
        "all": ModelEdit(head=head, logits=logits, linears={"transformer.h.0.attn.c_proj": linear}),
        "nothing": ModelEdit(),
    }


def draw_texts(
    model: LanguageModel, settings: GenerationSettings, edit: ModelEdit, stream: str
) -> list[DrawnText]:
    """Continuations of every prompt; the model says so as it generates."""
    keys = np.stack(
        [
            draw_keys(0, stream, f"p{prompt}", sample, settings.n_tokens)
            for prompt in range(N_PROMPTS)
            for sample in range(settings.n_samples)
        ]
    )
    (rows,) = sample_batch(model, PROMPTS, [HeadBranch(edit, keys)], settings)
    return [DrawnText(PROMPTS[row // settings.n_samples], drawn) for row, drawn in enumerate(rows)]


def sum_reference(
    model: LanguageModel, text: DrawnText, edit: ModelEdit, settings: GenerationSettings
) -> float:
    """Log p of one text: a forward pass under hooks, and the warpers of `generate`."""
    ids = torch.tensor([[*text.prompt, *text.drawn]])
    with torch.no_grad(), run_hooked(model, edit):
        logits = model.model(input_ids=ids).logits[0].double()
    end = model.tokenizer.eos_token_id
    targets = [*text.drawn, *([end] if len(text.drawn) < settings.n_tokens else [])]
    total = 0.0
    for step, target in enumerate(targets):
        row = logits[len(text.prompt) - 1 + step][None].clone()
        if step < settings.min_tokens:
            row[0, end] = -torch.inf
        row = TemperatureLogitsWarper(settings.temperature)(ids, row)
        if settings.top_p < 1.0:
            row = TopPLogitsWarper(settings.top_p)(ids, row)
        total += float(torch.log_softmax(row, 1)[0, target])
    return total


@pytest.mark.parametrize(
    ("top_p", "temperature", "min_tokens"), [(1.0, 1.0, 1), (0.9, 1.0, 1), (0.7, 1.3, 3)]
)
def test_each_text_has_the_ratio_that_generate_would_give_it(
    tiny_language_model: LanguageModel, top_p: float, temperature: float, min_tokens: int
) -> None:
    """Every kind of edit, with and without a nucleus, texts that end early among them."""
    settings = GenerationSettings(
        n_samples=N_SAMPLES,
        n_tokens=N_TOKENS,
        top_p=top_p,
        temperature=temperature,
        min_tokens=min_tokens,
    )
    texts = draw_texts(tiny_language_model, settings, ModelEdit(), "main")
    if top_p == 1.0:  # the end is too rare to be in a nucleus
        texts += [
            DrawnText(text.prompt, text.drawn[:length]) for text in texts[:9] for length in (1, 4)
        ]
    edits = make_edits(tiny_language_model)
    found = measure_log_ratios(
        tiny_language_model, texts, list(edits.values()), settings, tokens_per_batch=64
    )
    assert found.shape == (len(edits), len(texts))
    for name, ratios in zip(edits, found, strict=True):
        for text, ratio in zip(texts, ratios, strict=True):
            base = sum_reference(tiny_language_model, text, ModelEdit(), settings)
            expected = sum_reference(tiny_language_model, text, edits[name], settings) - base
            assert ratio == pytest.approx(expected, abs=2e-4), name
    assert found[-1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["head", "logits", "trunk"])
def test_what_is_foretold_is_what_the_edited_model_does(
    tiny_language_model: LanguageModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often tokens that the edit favours are said: from the base's texts, and from its own."""
    settings = GenerationSettings(n_samples=1_000, n_tokens=3, top_p=0.95)
    edit = make_edits(tiny_language_model)[name].scale(0.8)
    favoured = find_favoured(tiny_language_model, edit)
    texts = draw_texts(tiny_language_model, settings, ModelEdit(), "main")
    ratios = measure_log_ratios(
        tiny_language_model, texts, [edit], settings, tokens_per_batch=4_096
    )

    def has_favoured(found: list[DrawnText]) -> np.ndarray:
        return np.array([bool(favoured & set(text.drawn)) for text in found])

    is_marked = has_favoured(texts)
    prompts = np.repeat(np.arange(N_PROMPTS), settings.n_samples)
    monkeypatch.setattr(predicted_rates, "MAX_TOXIC", len(texts))
    sample = choose_texts(is_marked, prompts, N_PROMPTS, seed=0)
    replicates = draw_counts(N_PROMPTS, 200, 0)
    found = predict_rate(
        ratios[0][sample.places], is_marked[sample.places], sample, replicates, 0.95
    )
    with run_hooked(tiny_language_model, edit.of_trunk):
        own = draw_texts(
            tiny_language_model, settings, ModelEdit(edit.head, logits=edit.logits), "other"
        )
    generated = has_favoured(own).mean()
    error = np.hypot(0.5 / np.sqrt(len(own)), found.value / np.sqrt(found.n_effective))
    assert generated - is_marked.mean() > 2 * error  # there is something to foretell
    assert found.value == pytest.approx(generated, abs=3 * error)


def find_favoured(model: LanguageModel, edit: ModelEdit) -> set[int]:
    """The tokens that gain most right after the prompts."""
    gained = torch.zeros(model.head.vocab)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            before = model.model(input_ids=ids).logits[0, -1].softmax(0)
            with run_hooked(model, edit):
                gained += model.model(input_ids=ids).logits[0, -1].softmax(0) - before
    return set(gained.topk(20).indices.tolist())
