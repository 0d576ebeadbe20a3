"""Every point of a grid of damped components, from final hidden states alone.

Damping the first k components of a ranking by alpha changes the logits H W^T by
-(1 - alpha) (H V_k) (W V_k)^T, exactly. So the trunk and the head run once over the texts; a block
at a time, the rank-k term is grown over nested k and shared by all alpha, and what is left per
point is a logsumexp. Memory is bounded by the block, not by the texts or the grid. Which points
to look at, and what follows from them, is `tuning.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.components.calibration import ToxicStates
from eigenshift.model.batching import count_rows_per_block
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import check_factor

CELLS_PER_BLOCK = 1 << 20
"""Positions x vocabulary one point is computed on on a CPU: about what a core's cache holds."""
CELLS_PER_CHUNK = 1 << 24
"""Positions x vocabulary of base logits at once (64 MiB in float32)."""
LARGEST_EXPONENT = 60.0
"""Logits are shifted before exp only where some are further from 0 than this."""


@dataclass(frozen=True)
class GridPoint:
    """The first `n_components` of a ranking, damped by `factor`."""

    ranking: str
    n_components: int
    factor: float


@dataclass(frozen=True)
class Grid:
    """Points and the rankings they cut.

    Attributes:
        points: In the order of every result.
        rankings: Component indices by name of the ranking, first damped first.
        v: Right singular vectors of the head, shape (hidden, component).
        shares: Where a ranking's components are not all damped as far as the point's factor says:
            the share of it for each, in the order of the ranking.

    Raises:
        ComponentError: A point asks for more components than its ranking has, or a factor is
            outside 0 to 1.
    """

    points: tuple[GridPoint, ...]
    rankings: Mapping[str, Sequence[int]]
    v: FloatArray
    shares: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for point in self.points:
            check_factor(point.factor)
            n_ranked = len(self.rankings[point.ranking])
            if not 1 <= point.n_components <= n_ranked:
                raise ComponentError(
                    f"grid: expected 1 to {n_ranked} components of ranking {point.ranking}, found "
                    f"{point.n_components}. Lower tune.n_components, or raise "
                    "components.n_decomposed if it is set."
                )

    def list_components(self, point: GridPoint) -> dict[int, float]:
        """The components a point damps and the factor of each, in the order of the ranking."""
        indices = self.rankings[point.ranking][: point.n_components]
        shares = self.shares.get(point.ranking)
        if shares is None:
            return dict.fromkeys(indices, point.factor)
        # Rounded, so that what is damped the whole way has the point's own factor again.
        factors = [round(1.0 - share * (1.0 - point.factor), 12) for share in shares]
        return dict(zip(indices, factors, strict=True))


@dataclass(frozen=True)
class GridSums:
    """Sums over each text's positions; arrays of shape (point, text) or (text,).

    Attributes:
        n_tokens: Positions, shape (text,).
        base_nll: Negative log-likelihood of the unpatched model in nats, shape (text,).
        nll: Of each point, shape (point, text).
        kl_to_base: KL(base || point) in nats.
        n_changed_argmax: Positions whose likeliest token is another one.
    """

    n_tokens: FloatArray
    base_nll: FloatArray
    nll: FloatArray
    kl_to_base: FloatArray
    n_changed_argmax: FloatArray

    def take(self, texts: slice) -> GridSums:
        """The sums over some of the texts."""
        return GridSums(
            self.n_tokens[texts],
            self.base_nll[texts],
            self.nll[:, texts],
            self.kl_to_base[:, texts],
            self.n_changed_argmax[:, texts],
        )

    @property
    def perplexity_increase(self) -> FloatArray:
        """Relative rise of the corpus perplexity per point, shape (point,)."""
        n_tokens = self.n_tokens.sum()
        return np.asarray(np.expm1((self.nll.sum(1) - self.base_nll.sum()) / n_tokens))


@dataclass(frozen=True)
class _Block:
    """One block of positions under one point, each tensor of shape (position,).

    Attributes:
        rows: Which positions of the states.
        point: Which point.
        exponentials: exp(logits - shift), shape (position, vocab); overwritten by the next point.
        total: Their sums.
        log_total: log of the sum of exp(logits), where the base's is 0.
        largest: The largest logit.
        target: The logit of the target token.
        base_choice: The logit of the base's likeliest token.
        mean_change: Mean change of the logits under the base's distribution.
    """

    rows: slice
    point: int
    exponentials: Tensor
    total: Tensor
    log_total: Tensor
    largest: Tensor
    target: Tensor
    base_choice: Tensor
    mean_change: Tensor


@torch.inference_mode()
def measure_grid(
    language_model: LanguageModel,
    grid: Grid,
    sequences: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int,
    n_contexts: Sequence[int] | None = None,
) -> GridSums:
    """Likelihood, divergence and changed predictions of every point on texts.

    Args:
        language_model: The unpatched model.
        grid: What to measure.
        sequences: Token ids of the texts, at least two each; the first is context only.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        n_contexts: Of each text, how many tokens at its start are not predicted; None: one.
    """
    n_contexts = [1] * len(sequences) if n_contexts is None else n_contexts
    device, n_texts = language_model.device, len(sequences)
    sweep = _Sweep(language_model, grid)
    base_nll = torch.zeros(n_texts, dtype=torch.float64, device=device)
    sums = torch.zeros(3, len(grid.points), n_texts, dtype=torch.float64, device=device)
    joined = _join_texts(language_model, sequences, n_contexts, tokens_per_batch)
    for states, targets, texts in joined:
        sweep.load(states, targets)
        base_nll.index_add_(0, texts, -sweep.base_target.double())
        for block in sweep.run():
            found = torch.stack(
                [
                    block.log_total - block.target,
                    block.log_total - block.mean_change,
                    (block.largest > block.base_choice).float(),
                ]
            )
            sums[:, block.point].index_add_(1, texts[block.rows], found.double())
    n_tokens = np.array(list(map(len, sequences)), dtype=np.float64) - np.array(n_contexts)
    nll, kl, changed = sums.cpu().numpy()
    return GridSums(n_tokens, base_nll.cpu().numpy(), nll, kl, changed)


@torch.inference_mode()
def measure_token_share(
    language_model: LanguageModel, grid: Grid, toxic: ToxicStates
) -> FloatArray:
    """What each point leaves of the toxic tokens' probability, relative to the unpatched model.

    Args:
        language_model: The unpatched model.
        grid: What to measure.
        toxic: Positions about to generate a toxic token, and these tokens.

    Returns:
        Shape (point,); 1 where nothing changes.
    """
    sweep = _Sweep(language_model, grid)
    states, token_ids = toxic.states, toxic.token_ids
    sums = torch.zeros(len(grid.points), dtype=torch.float64, device=states.device)
    base = torch.zeros((), dtype=torch.float64, device=states.device)
    for first in range(0, len(states), sweep.rows_per_chunk):
        rows = slice(first, first + sweep.rows_per_chunk)
        sweep.load(states[rows], token_ids.new_zeros(len(states[rows])))
        base_shares = sweep.base[:, token_ids].exp().sum(1)
        weights = toxic.weigh_ratios(base_shares, rows)
        base += (base_shares @ weights).double()
        for block in sweep.run():
            shares = block.exponentials[:, token_ids].sum(1) / block.total
            sums[block.point] += (shares @ weights[block.rows]).double()
    return np.asarray((sums / base).cpu().numpy())


def _join_texts(
    language_model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    n_contexts: Sequence[int],
    tokens_per_batch: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of states, targets and places of the texts, each of shape (position, ...)."""
    n_rows = max(1, CELLS_PER_CHUNK // language_model.head.vocab)
    device = language_model.device
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def join() -> tuple[Tensor, Tensor, Tensor]:
        states, targets, texts = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        return states, targets, texts

    for place, states in iterate_head_states(language_model, sequences, tokens_per_batch):
        n_context = n_contexts[place]
        targets = torch.tensor(sequences[place][n_context:], device=device)
        states = states[n_context - 1 : -1]
        texts = torch.full_like(targets, place)
        for first in range(0, len(targets), n_rows):
            rows = slice(first, first + n_rows)
            waiting.append((states[rows], targets[rows], texts[rows]))
            if sum(len(part[1]) for part in waiting) >= n_rows:
                yield join()
                waiting.clear()
    if waiting:
        yield join()


class _Sweep:
    """All points on one chunk of positions after the other.

    Logits are kept relative to the base's log-normaliser, `base` = log p of the base: what is
    small stays small, and differences between point and base do not cancel.
    """

    def __init__(self, language_model: LanguageModel, grid: Grid) -> None:
        self._head, self._module = language_model.head, language_model.head_module
        weight = language_model.head_weight
        used = sorted({index for ranking in grid.rankings.values() for index in ranking})
        place_of = {index: place for place, index in enumerate(used)}
        v = torch.from_numpy(np.ascontiguousarray(grid.v[:, used])).to(weight.device)
        self._v = v.float()
        effects = (weight.detach() @ v.to(weight.dtype)).float().T.contiguous()
        """Change of the raw logits per unit of each component's activation."""
        self._effects = effects
        self._points = grid.points
        self._rankings = {
            name: torch.tensor([place_of[index] for index in ranking], device=weight.device)
            for name, ranking in grid.rankings.items()
        }
        self._shares = {
            name: torch.tensor(shares, device=weight.device) for name, shares in grid.shares.items()
        }
        self.rows_per_chunk = max(1, CELLS_PER_CHUNK // self._head.vocab)
        self._rows_per_block = count_rows_per_block(
            self._head.vocab, CELLS_PER_BLOCK, weight.device
        )

    def load(self, states: Tensor, targets: Tensor) -> None:
        """Compute the base on a chunk: states of shape (position, hidden), targets (position,)."""
        states = states.to(self._module.weight.dtype)  # stored ones are wider than some models
        self._raw = torch.nn.functional.linear(states, self._module.weight, self._module.bias)
        logits = self._head.finish_logits(self._raw.float())
        self.base = torch.log_softmax(logits, -1)
        self._log_normaliser = (logits[:, :1] - self.base[:, :1]).clone()
        self._targets = targets[:, None]
        self.base_target = self.base.gather(1, self._targets).squeeze(1)
        self._choices = self.base.argmax(-1, keepdim=True)
        self._amounts = states.float() @ self._v

    def run(self) -> Iterator[_Block]:
        """Every point on every block of the chunk."""
        for first in range(0, len(self.base), self._rows_per_block):
            rows = slice(first, min(first + self._rows_per_block, len(self.base)))
            for name, ranking in self._rankings.items():
                yield from self._climb(rows, name, ranking)

    def _climb(self, rows: slice, name: str, ranking: Tensor) -> Iterator[_Block]:
        """The points of one ranking, fewest components first, on one block."""
        places = [place for place, point in enumerate(self._points) if point.ranking == name]
        places.sort(key=lambda place: self._points[place].n_components)
        base = self.base[rows]
        amounts = self._amounts[rows][:, ranking]
        if name in self._shares:
            amounts = amounts * self._shares[name]
        removed, logits = torch.zeros_like(base), torch.empty_like(base)
        probabilities = base.exp()
        n_removed = 0
        for place in places:
            point = self._points[place]
            added = slice(n_removed, point.n_components)
            if point.n_components > n_removed:
                removed.addmm_(amounts[:, added], self._effects[ranking[added]])
                n_removed = point.n_components
                mean_removed = torch.linalg.vecdot(probabilities, removed)
            yield self._apply(rows, place, 1.0 - point.factor, removed, mean_removed, logits)

    def _apply(
        self,
        rows: slice,
        place: int,
        share: float,
        removed: Tensor,
        mean_removed: Tensor,
        logits: Tensor,
    ) -> _Block:
        """One point on one block; `logits` is where it may compute."""
        base, head = self.base[rows], self._head
        if head.logit_softcap is None:
            step = -share * head.logit_scale
            torch.add(base, removed, alpha=step, out=logits)
            mean_change = step * mean_removed
        else:
            raw = torch.add(self._raw[rows].float(), removed, alpha=-share)
            torch.sub(head.finish_logits(raw), self._log_normaliser[rows], out=logits)
            mean_change = torch.linalg.vecdot(base.exp(), logits - base)
        largest = logits.amax(-1)
        target = logits.gather(1, self._targets[rows]).squeeze(1)
        base_choice = logits.gather(1, self._choices[rows]).squeeze(1)
        shift: Tensor | float = 0.0
        if float(largest.abs().max()) > LARGEST_EXPONENT:
            logits -= largest[:, None]
            shift = largest
        total = logits.exp_().sum(-1)
        log_total = total.log() + shift
        return _Block(
            rows, place, logits, total, log_total, largest, target, base_choice, mean_change
        )


def list_points(
    rankings: Iterable[str], n_components: Iterable[int], factors: Iterable[float]
) -> tuple[GridPoint, ...]:
    """Every combination, in this order."""
    return tuple(
        GridPoint(ranking, k, factor)
        for ranking in rankings
        for k in n_components
        for factor in factors
    )
