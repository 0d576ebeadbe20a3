"""The engine: vLLM's names and meanings, and a clear word where it is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.generation import engines
from eigenshift.generation.engines import Draw, EngineRequest, open_engine, require_backend
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import Backend, ExecutionSettings, SamplingSettings
from tests.support.fake_vllm import NAMES, install_fake_vllm

PROMPTS = [[5, 9, 70], [11], [5, 9, 70, 4]]


@pytest.fixture
def request_tiny(tiny_model_folder: Path, tiny_language_model: LanguageModel) -> EngineRequest:
    """The tiny model, four tokens at most."""
    end = tiny_language_model.tokenizer.eos_token_id
    sampling = SamplingSettings(n_samples=1, n_tokens=4, seed=3)
    execution = ExecutionSettings(engine_gpus=2, engine_memory=0.5)
    return EngineRequest(tiny_model_folder, "float32", 40, (end,), sampling, execution)


def test_a_missing_engine_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting and what the package needs; our own loop needs nothing."""
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    require_backend(Backend.transformers)
    with pytest.raises(SettingsError, match=r"generation\.backend.*'vllm'.*not installed"):
        require_backend(Backend.vllm)


def test_an_engine_is_started_as_the_settings_say_and_let_go_of(
    monkeypatch: pytest.MonkeyPatch, request_tiny: EngineRequest
) -> None:
    """Precision, positions, GPUs and memory; no code of the model's author; nothing stays."""
    engine_class = install_fake_vllm(monkeypatch)
    with open_engine(request_tiny) as engine:
        assert engine_class.n_alive == 1
        assert engine.version == f"vllm {NAMES['version']}"
    assert engine_class.n_alive == 0
    (started,) = engine_class.started
    assert started == {
        "model": str(request_tiny.folder),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": "float32",
        "seed": 3,
        "max_model_len": 40,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
    }


def test_an_engine_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, request_tiny: EngineRequest
) -> None:
    """Its own reason, in one line, and the settings that may help."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("made-up lack of memory\nand a page of advice")

    monkeypatch.setattr(install_fake_vllm(monkeypatch), "__init__", refuse)
    expected = r"found: made-up lack of memory It .*engine_memory"
    with pytest.raises(ModelError, match=expected), open_engine(request_tiny):
        pass


def test_an_engine_is_let_go_of_after_an_error(
    monkeypatch: pytest.MonkeyPatch, request_tiny: EngineRequest
) -> None:
    """The next one finds its memory free."""
    engine_class = install_fake_vllm(monkeypatch)
    with pytest.raises(RuntimeError, match="made up"), open_engine(request_tiny):
        raise RuntimeError("made up")
    with open_engine(request_tiny):
        assert engine_class.n_alive == 1


def test_what_is_drawn_depends_on_its_own_seed_only(
    monkeypatch: pytest.MonkeyPatch, request_tiny: EngineRequest
) -> None:
    """Alone or beside others; another seed gives another continuation."""
    install_fake_vllm(monkeypatch)
    with open_engine(request_tiny) as engine:
        together = engine.draw([Draw(prompt, 7) for prompt in PROMPTS])
        alone = [engine.draw([Draw(prompt, 7)])[0] for prompt in PROMPTS]
        other = engine.draw([Draw(prompt, 8) for prompt in PROMPTS])
    assert together == alone
    assert together != other


def test_ends_are_cut_off_and_not_drawn_too_early(
    monkeypatch: pytest.MonkeyPatch, request_tiny: EngineRequest
) -> None:
    """With every token but two an end, a continuation is as long as `min_tokens` asks for."""
    install_fake_vllm(monkeypatch)
    ends = tuple(token for token in range(320) if token not in (40, 41))
    sampling = request_tiny.sampling.model_copy(update={"min_tokens": 2})
    request = EngineRequest(
        request_tiny.folder, "float32", 40, ends, sampling, request_tiny.execution
    )
    with open_engine(request) as engine:
        found = engine.draw([Draw([5, 9], seed) for seed in range(6)])
    assert {len(row) for row in found} >= {2}
    assert all(len(row) >= 2 and set(row) <= {40, 41} for row in found)


def test_tokens_are_weighed_as_the_model_weighs_them(
    monkeypatch: pytest.MonkeyPatch,
    request_tiny: EngineRequest,
    tiny_language_model: LanguageModel,
) -> None:
    """Log probability of each token but the first, of one sequence at a time."""
    install_fake_vllm(monkeypatch)
    sequences = [PROMPTS[0], PROMPTS[2]]
    with open_engine(request_tiny) as engine:
        found = engine.weigh(sequences)
    for row, sequence in zip(found, sequences, strict=True):
        with torch.inference_mode():
            logits = tiny_language_model.model(input_ids=torch.tensor([sequence])).logits[0]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(sequence) - 1), sequence[1:]]
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)
