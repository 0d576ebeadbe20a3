"""Edits as formulas: where a constant at the head's input exists."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenshift.base.errors import ComponentError
from eigenshift.patches.edit_files import read_edit
from eigenshift.patches.edits import HeadEdit


@pytest.mark.parametrize("k", [1, 3])
def test_an_edit_that_removes_a_direction_has_no_shift_before_the_head(k: int) -> None:
    """What is removed cannot be made up for by a constant, for one direction as for several."""
    v = np.linalg.qr(np.random.default_rng(0).normal(size=(8, k)))[0]
    assert HeadEdit.scale_directions(v, 0.0, target=np.ones(k)).find_state_shift() is None
    edit = HeadEdit.scale_directions(v, 0.5, target=np.ones(k))
    shift = edit.find_state_shift()
    assert shift is not None
    states = torch.randn(4, 8, dtype=torch.float64)
    moved = states + shift
    expected = edit.apply_to_states(states)
    torch.testing.assert_close(moved - (moved @ edit.right) @ edit.left.T, expected)


def test_tensors_of_another_version_are_refused() -> None:
    """Read as nothing, an edit would change nothing, and nobody would notice."""
    with pytest.raises(ComponentError, match=r"found head/left\. .*make it again"):
        read_edit({"head/left": torch.ones(4, 1), "head/right": torch.ones(4, 1)})
