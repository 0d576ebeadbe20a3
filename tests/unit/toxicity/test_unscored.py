"""Too many without a score stop a run."""

from __future__ import annotations

import pytest

from eigenshift.base.errors import EvaluationError
from eigenshift.toxicity.unscored import require_scored


def test_too_many_unscored_stop_the_run() -> None:
    """Above the set share the evaluation fails instead of reporting a low toxicity."""
    require_scored(2, 100, 0.02, "arm base")
    with pytest.raises(EvaluationError, match="3 of 100"):
        require_scored(3, 100, 0.02, "arm base")
