"""A batch of branches on their way through the model: read what is new, go on with drawn tokens.

A branch is a prompt and the tokens drawn so far. Where the model returns a cache and continues from
it as it should, each token is read once (`CachedBranches`). Where it has no cache (OpenAI GPT), one
that cannot be shared out among branches (RWKV, MiniMax), or one that padding spoils, the whole
sequences are read again at every step (`WholeBranches`), which is slower and right for every causal
model. Which of the two is decided by a probe, once per model. Runs the model; what is done at its
head is `decoding.py`'s.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eigenshift.model.batching import is_out_of_memory
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import pad_tokens

logger = logging.getLogger(__name__)

CACHE_NAMES = ("past_key_values", "cache_params")
"""Under which models return a cache and take it again; the second is Mamba's and its kin's."""
PROBE_LENGTHS = (2, 6, 9)
"""Of the probe's prompts: shorter and longer than a state-space model's convolution."""
N_PROBE_STEPS = 3
PROBE_TOLERANCE = 1e-3
COARSE_TOLERANCE = 3e-2
"""Largest difference of logits relative to the largest, in float32 and in coarser weights."""
PROBE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""As which models fail whose cache was made for one sequence, or for their own `generate` only."""

_cache_names: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
"""Of each model probed, as long as it lives."""


class Branches(Protocol):
    """Branches of one batch."""

    @property
    def n_branches(self) -> int:
        """How many there are now."""

    def read(self) -> Tensor:
        """Run the model over what it has not read yet; its logits, as it returns them."""

    def select(self, values: Tensor) -> Tensor:
        """Of values at each position of the last run, those of each branch's last token.

        Args:
            values: Shape (branch, position, ...).

        Returns:
            Shape (branch, 1, ...).
        """

    def go_on(self, parents: Tensor, tokens: Tensor) -> None:
        """Replace the branches by others, each a parent and one more token.

        Args:
            parents: Places of the parents, ascending, shape (branch,); one may have several
                children, or none.
            tokens: What each child has drawn, shape (branch,).
        """


class CachedBranches:
    """Branches of a model that keeps what it has read. Padded on the left."""

    def __init__(
        self, language_model: LanguageModel, prompts: Sequence[list[int]], cache_name: str
    ) -> None:
        self.cache: Any = None
        self._model, self._cache_name = language_model.model, cache_name
        self._accepted = inspect.signature(language_model.model.forward).parameters
        self._token_ids, self._mask = (
            tensor.to(language_model.device)
            for tensor in pad_tokens(prompts, language_model.tokenizer.pad_token_id, "left")
        )
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)

    @property
    def n_branches(self) -> int:
        """How many there are now."""
        return len(self._token_ids)

    def read(self) -> Tensor:
        """Run the model over the newest tokens."""
        outputs = self._model(**self._list_arguments())
        self.cache = getattr(outputs, self._cache_name, None)
        logits: Tensor = outputs.logits
        return logits

    def select(self, values: Tensor) -> Tensor:
        """The last position of each branch."""
        return values[:, -1:]

    def go_on(self, parents: Tensor, tokens: Tensor) -> None:
        """Go on from the cache, shared out among the parents' children."""
        if len(parents) > self.n_branches:  # as many: each goes on, none has split
            self.cache.reorder_cache(parents)
        self._token_ids = tokens[:, None]
        self._mask = torch.cat([self._mask[parents], self._mask.new_ones(len(parents), 1)], 1)
        self._positions = self._positions[parents, -1:] + 1

    def _list_arguments(self) -> dict[str, Any]:
        """Keyword arguments of a forward pass; models without explicit positions take none."""
        is_state = self._cache_name != CACHE_NAMES[0] and self.cache is not None
        arguments: dict[str, Any] = {
            "input_ids": self._token_ids,
            # a state has no positions: what is masked is of the tokens read now, all of them real
            "attention_mask": None if is_state else self._mask,
            "use_cache": True,
        }
        if self.cache is not None:
            arguments[self._cache_name] = self.cache
        if "position_ids" in self._accepted:
            arguments["position_ids"] = self._positions
        if "logits_to_keep" in self._accepted:
            arguments["logits_to_keep"] = 1
        return arguments


class WholeBranches:
    """Branches of a model that reads every sequence from its beginning. Padded on the right."""

    def __init__(self, language_model: LanguageModel, prompts: Sequence[list[int]]) -> None:
        self._model, self._device = language_model.model, language_model.device
        self._pad_token_id = language_model.tokenizer.pad_token_id
        self._rows = [list(prompt) for prompt in prompts]

    @property
    def n_branches(self) -> int:
        """How many there are now."""
        return len(self._rows)

    def read(self) -> Tensor:
        """Run the model over all tokens."""
        token_ids, mask = pad_tokens(self._rows, self._pad_token_id, "right")
        logits: Tensor = self._model(
            input_ids=token_ids.to(self._device),
            attention_mask=mask.to(self._device),
            use_cache=False,
        ).logits
        return logits

    def select(self, values: Tensor) -> Tensor:
        """The last real position of each branch."""
        last = torch.tensor([len(row) - 1 for row in self._rows], device=values.device)
        return values[torch.arange(len(values), device=values.device), last][:, None]

    def go_on(self, parents: Tensor, tokens: Tensor) -> None:
        """Append the tokens."""
        children = zip(parents.tolist(), tokens.tolist(), strict=True)
        self._rows = [[*self._rows[parent], token] for parent, token in children]


def start_branches(language_model: LanguageModel, prompts: Sequence[list[int]]) -> Branches:
    """One branch for each prompt, in the way that is right for the model.

    Args:
        language_model: The model as its trunk is to run.
        prompts: Token ids, at least one each.
    """
    cache_name = find_cache_name(language_model)
    if cache_name is None:
        return WholeBranches(language_model, prompts)
    return CachedBranches(language_model, prompts, cache_name)


@torch.inference_mode()
def find_cache_name(language_model: LanguageModel) -> str | None:
    """Under which name a model's cache is returned; None: it has none that can be relied on.

    Found by running made-up prompts of different lengths with the cache and without: what follows a
    prompt must not depend on the padding of the batch nor on how its branches split.
    """
    model = language_model.model
    if model not in _cache_names:
        try:
            found, reason = _probe_cache(language_model), "none that holds"
        except PROBE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            found, reason = None, f"it cannot be gone on from ({type(error).__name__}: {error})"
        if found is None:
            logger.info(
                "whole sequences are read at each token: model=%s class=%s cache=%s",
                language_model.id,
                type(model).__name__,
                reason,
            )
        _cache_names[model] = found
    return _cache_names[model]


def _probe_cache(language_model: LanguageModel) -> str | None:
    vocab = language_model.vocab
    prompts = _make_prompts(vocab)
    for name in CACHE_NAMES:
        cached = CachedBranches(language_model, prompts, name)
        cached.read()
        if hasattr(cached.cache, "reorder_cache"):
            found = _continue(CachedBranches(language_model, prompts, name), vocab)
            expected = _continue(WholeBranches(language_model, prompts), vocab)
            return name if _are_close(language_model, found, expected) else None
    return None


def _make_prompts(vocab: int) -> list[list[int]]:
    return [
        [(place * 7 + row * 11 + 5) % vocab for place in range(length)]
        for row, length in enumerate(PROBE_LENGTHS)
    ]


def _continue(branches: Branches, vocab: int) -> list[Tensor]:
    """Logits of some steps with made-up tokens; after the first the first branch splits."""
    logits = [branches.select(branches.read())]
    for step in range(N_PROBE_STEPS):
        places = torch.arange(branches.n_branches, device=logits[0].device)
        parents = torch.cat([places[:1], places]) if step == 0 else places
        tokens = (torch.arange(len(parents), device=places.device) * 13 + step * 5 + 3) % vocab
        branches.go_on(parents, tokens)
        logits.append(branches.select(branches.read()))
    return logits


def _are_close(
    language_model: LanguageModel, found: Sequence[Tensor], expected: Sequence[Tensor]
) -> bool:
    """Whether most rows of every step agree: where experts are chosen, rounding may move one."""
    is_coarse = hasattr(language_model.model.config, "quantization_config")
    is_coarse |= language_model.head.dtype not in (torch.float32, torch.float64)
    tolerance = COARSE_TOLERANCE if is_coarse else PROBE_TOLERANCE
    for one, other in zip(found, expected, strict=True):
        scale = other.float().abs().amax((1, 2)).clamp_min(1e-6)
        differences = (one.float() - other.float()).abs().amax((1, 2)) / scale
        if not bool(differences.median() <= tolerance):
            return False
    return True
