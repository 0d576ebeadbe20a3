"""Engines that draw continuations in place of our own loop, behind one small protocol: vLLM.

An engine serves one folder of weights; it is given token ids and gives token ids. vLLM is imported
only where it is asked for: it is no dependency, and wants an environment of its own
(docs/decisions/0076-continuations-by-an-engine.md). Which folder and which rows are `served.py`'s.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.settings import Backend, ExecutionSettings, SamplingSettings

_one_at_a_time = threading.Lock()
"""Tasks in threads share the GPU, and an engine takes most of it."""


@dataclass(frozen=True)
class Draw:
    """One continuation that is asked for.

    Attributes:
        prompt: Token ids, at least one.
        seed: Of its own random numbers, below 2^63.
    """

    prompt: Sequence[int]
    seed: int


class Engine(Protocol):
    """A model that is served."""

    @property
    def version(self) -> str:
        """Name and version of the engine."""

    def draw(self, draws: Sequence[Draw]) -> list[list[int]]:
        """Continue prompts; token ids up to, and without, the first that ends a text or a turn."""

    def weigh(self, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Log probability of each token after those before it, shape (length - 1,) each.

        Args:
            sequences: Token ids, at least two each.
        """


@dataclass(frozen=True)
class EngineRequest:
    """What is served, and how it is sampled.

    Attributes:
        folder: Weights and configuration as transformers saves them.
        dtype: Torch's name of the precision that was studied.
        n_positions: Longest prompt and continuation together.
        ends: Tokens that end a text or a turn.
        sampling: Nucleus, temperature and lengths.
        execution: GPUs and their memory.
    """

    folder: Path
    dtype: str
    n_positions: int
    ends: tuple[int, ...]
    sampling: SamplingSettings
    execution: ExecutionSettings


def require_backend(backend: Backend) -> None:
    """Refuse a backend whose package is not here.

    Raises:
        SettingsError: It is not.
    """
    if backend is not Backend.transformers and find_spec(backend.value) is None:
        raise SettingsError(
            f"generation.backend: expected the package {backend.value!r}, found it is not "
            "installed. It needs Linux, a GPU and versions of torch and transformers of its own: "
            "install it beside EigenShift into an environment of that (docs/scale.md), or set "
            "generation.backend: transformers."
        )


@contextmanager
def open_engine(request: EngineRequest) -> Iterator[Engine]:
    """Start an engine, and end it with the block; a process has one at a time.

    Raises:
        SettingsError: Its package is not installed.
        ModelError: It does not start.
    """
    require_backend(Backend.vllm)
    with _one_at_a_time:
        engine = VllmEngine(request)
        try:
            yield engine
        finally:
            engine.close()


class VllmEngine:
    """vLLM's offline engine (`vllm.LLM`), without its tokenizer.

    Names and meanings are those of vLLM 0.33. Each continuation is a request of its own with its
    own seed; the engine shares what their prompts have in common by itself.

    Args:
        request: What to serve.

    Raises:
        ModelError: It does not start.
    """

    def __init__(self, request: EngineRequest) -> None:
        self._vllm: Any = import_module("vllm")
        self._sampling, self._ends = request.sampling, frozenset(request.ends)
        try:
            self._llm: Any = self._vllm.LLM(
                model=str(request.folder),
                skip_tokenizer_init=True,
                trust_remote_code=False,
                dtype=request.dtype,
                seed=request.sampling.seed,
                max_model_len=request.n_positions,
                tensor_parallel_size=request.execution.engine_gpus,
                gpu_memory_utilization=request.execution.engine_memory,
            )
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"{request.folder}: expected {self.version} to serve it, found: {reason} It may "
                "not know the architecture, or find too little memory. Set execution.concurrency: "
                "1 and another execution.engine_memory or engine_gpus, or generation.backend: "
                "transformers."
            ) from error

    @property
    def version(self) -> str:
        """Name and version of the engine."""
        return f"vllm {self._vllm.__version__}"

    def draw(self, draws: Sequence[Draw]) -> list[list[int]]:
        """As the protocol says."""
        settings = self._sampling
        found = self._run(
            [draw.prompt for draw in draws],
            [
                self._vllm.SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.n_tokens,
                    min_tokens=min(settings.min_tokens, settings.n_tokens),
                    stop_token_ids=sorted(self._ends),
                    seed=draw.seed,
                    detokenize=False,
                )
                for draw in draws
            ],
        )
        return [self._cut(output.outputs[0].token_ids) for output in found]

    def weigh(self, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As the protocol says."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        found = self._run(sequences, params)
        return [
            np.array(
                [
                    places[token].logprob
                    for token, places in zip(
                        sequence[1:], list(output.prompt_logprobs)[1:], strict=True
                    )
                ]
            )
            for sequence, output in zip(sequences, found, strict=True)
        ]

    def close(self) -> None:
        """Let go of the engine; its memory is free then."""
        self._llm = None
        gc.collect()

    def _run(self, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
        given = [self._vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        found: list[Any] = self._llm.generate(given, params, use_tqdm=False)
        return found

    def _cut(self, token_ids: Sequence[int]) -> list[int]:
        """Without the end, which the engine returns, and what is behind it."""
        for place, token in enumerate(token_ids):
            if token in self._ends:
                return list(token_ids[:place])
        return list(token_ids)
