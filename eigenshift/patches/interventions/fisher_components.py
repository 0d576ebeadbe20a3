"""EigenShift in the Fisher metric: the change that `patches/fisher/` found.

`eigenshift_fisher` changes the head alone, `eigenshift_fisher_deep` every layer that writes into
the residual stream too (docs/decisions/0050-fisher-components.md).
"""

from __future__ import annotations

from eigenshift.base.errors import NothingToDampError
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest


def take_fisher_edit(evidence: Evidence, request: PatchRequest) -> Outcome:
    """The edit as it was found for the request's budget.

    Raises:
        NothingToDampError: No step lowers toxicity within the budget.
    """
    edit = evidence.fisher
    written = [linear.left for linear in edit.linears.values()]
    written += [] if edit.logits is None else [edit.logits.left]
    if not any(left.any() for left in written):
        raise NothingToDampError(
            f"{request.intervention}: expected a step that costs at most "
            f"{request.max_perplexity_increase:.1%} perplexity, found none. Raise "
            "components.max_perplexity_increase."
        )
    return Outcome(
        edit,
        parameters={
            "n_terms": sum(left.shape[1] for left in written),
            "n_matrices": len(written),
        },
    )
