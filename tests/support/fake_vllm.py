"""A stand-in for the package vLLM: its names, on transformers.

`vllm_names.json` was read off the source of vLLM 0.33.0 (a wheel of Python files and kernels, which
does not run without a GPU): parameters of `LLM` (and `max_model_len`, which it hands on) and of
`LLM.generate`, fields of `SamplingParams`, `TokensPrompt` and of what is returned. Anything else is
refused here. What is drawn follows vLLM's sampler: an exponential race with a generator for each
request, among the tokens of the nucleus; ends are returned.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

NAMES = json.loads(Path(__file__).with_name("vllm_names.json").read_text(encoding="utf-8"))


def require_names(what: str, given: dict[str, Any]) -> None:
    """Fail on a name that vLLM does not have."""
    unknown = set(given) - set(NAMES[what])
    assert not unknown, f"{what} has no {sorted(unknown)}"


class TokensPrompt(dict[str, Any]):
    """A prompt of token ids."""

    def __init__(self, **given: Any) -> None:
        require_names("TokensPrompt", given)
        super().__init__(given)


class SamplingParams(SimpleNamespace):
    """How one request is sampled."""

    def __init__(self, **given: Any) -> None:
        require_names("SamplingParams", given)
        defaults = {
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": None,
            "min_tokens": 0,
            "stop_token_ids": (),
            "prompt_logprobs": None,
        }
        super().__init__(**{**defaults, **given})
        assert self.min_tokens <= self.max_tokens


class LLM:
    """Serves a folder.

    Attributes:
        n_alive: Engines of all tests that were not let go of.
        started: Arguments of every engine, in their order.
        ties_head: As a class does that knows no head of its own: the embedding is taken.
    """

    n_alive = 0
    started: list[dict[str, Any]] = []  # noqa: RUF012 - emptied for every test
    ties_head = False

    def __init__(self, model: str, **given: Any) -> None:
        from transformers import AutoModelForCausalLM

        require_names("LLM", given)
        assert LLM.n_alive == 0, "the memory of the engine before is not free"
        dtype = getattr(torch, given["dtype"])
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        if LLM.ties_head:
            self._model.lm_head.weight = self._model.get_input_embeddings().weight
        self._n_positions = given["max_model_len"]
        assert self._n_positions <= self._model.config.max_position_embeddings
        LLM.n_alive += 1
        LLM.started.append({"model": model, **given})

    def __del__(self) -> None:
        LLM.n_alive -= hasattr(self, "_n_positions")

    def generate(self, prompts: Sequence[Any], params: Any, **given: Any) -> list[Any]:
        """Outputs in the order of the prompts."""
        require_names("LLM.generate", given)
        each = params if isinstance(params, list) else [params] * len(prompts)
        rows = [list(prompt["prompt_token_ids"]) for prompt in prompts]
        assert all(len(row) < self._n_positions for row in rows)
        weighed = [
            self._weigh(row) if one.prompt_logprobs is not None else None
            for row, one in zip(rows, each, strict=True)
        ]
        drawn = self._draw(rows, each)
        return [
            SimpleNamespace(
                prompt_logprobs=logprobs, outputs=[SimpleNamespace(index=0, token_ids=tuple(found))]
            )
            for logprobs, found in zip(weighed, drawn, strict=True)
        ]

    @torch.inference_mode()
    def _weigh(self, row: list[int]) -> list[Any]:
        logits = self._model(input_ids=torch.tensor([row])).logits[0].float()
        found = torch.log_softmax(logits, -1)
        return [None] + [
            {token: SimpleNamespace(logprob=float(found[place, token]))}
            for place, token in enumerate(row[1:])
        ]

    @torch.inference_mode()
    def _draw(self, rows: list[list[int]], each: Sequence[Any]) -> list[list[int]]:
        """All requests at once, whole sequences again at each step, padded on the right."""
        drawn: list[list[int]] = [[] for _ in rows]
        noise = [torch.Generator().manual_seed(one.seed or 0) for one in each]
        going = list(range(len(rows)))
        while going:
            sequences = [rows[place] + drawn[place] for place in going]
            width = max(map(len, sequences))
            padded = torch.tensor([row + [0] * (width - len(row)) for row in sequences])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
            logits = self._model(input_ids=padded, attention_mask=mask).logits
            left = []
            for number, place in enumerate(going):
                one = each[place]
                token = _draw_token(
                    logits[number, len(sequences[number]) - 1].float(),
                    one,
                    noise[place],
                    may_end=len(drawn[place]) >= one.min_tokens,
                )
                drawn[place].append(token)
                if token not in one.stop_token_ids and len(drawn[place]) < one.max_tokens:
                    left.append(place)
            going = left
        return drawn


def _draw_token(
    logits: torch.Tensor, params: Any, generator: torch.Generator, *, may_end: bool
) -> int:
    if not may_end:
        logits[list(params.stop_token_ids)] = -torch.inf
    if params.temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / params.temperature, -1)
    ordered, places = probabilities.sort(descending=True)
    outside = ordered.cumsum(0) - ordered >= params.top_p
    probabilities[places[outside]] = 0.0
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    return int((probabilities / race).argmax())


def install_fake_vllm(monkeypatch: pytest.MonkeyPatch, *, ties_head: bool = False) -> type[LLM]:
    """Put it where `import vllm` finds it; returns its engine class, which counts."""
    module: Any = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.__version__ = NAMES["version"]
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, SamplingParams, TokensPrompt
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "started", [])
    monkeypatch.setattr(LLM, "ties_head", ties_head)
    return LLM
