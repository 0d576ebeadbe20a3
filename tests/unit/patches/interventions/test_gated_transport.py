"""DSAS: the gate is a logistic regression, and what it takes for harmless hardly moves."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from eigenshift.patches.edits import UnitEdit
from eigenshift.patches.interventions import gated_transport as transport
from eigenshift.patches.interventions.gated_transport import fit_gate, gate_map, transport_gated
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.requests import PatchRequest

UNITS = 10


def make_states(gap: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Source states apart from control states along one direction."""
    generator = np.random.default_rng(0)
    source, control = generator.normal(size=(80, UNITS)), generator.normal(size=(120, UNITS))
    source[:, 3] += gap
    return source, control


def test_the_gate_is_a_regression_on_principal_components() -> None:
    """As scikit-learn's on whitened components, with the classes in balance."""
    source, control = make_states(gap=1.5)
    direction, offset = fit_gate(source, control)
    states = np.concatenate([source, control])
    labels = np.r_[np.ones(len(source)), np.zeros(len(control))]
    centred = states - states.mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    scores = centred @ vt.T / s * np.sqrt(len(states))
    reference = LogisticRegression(class_weight="balanced", C=1.0, tol=1e-10, max_iter=1000)
    reference.fit(scores, labels)
    found = states @ direction + offset
    np.testing.assert_allclose(found, reference.decision_function(scores), atol=1e-4)


def test_a_planted_direction_is_found() -> None:
    """The gate reads what the classes differ by."""
    direction, _ = fit_gate(*make_states())
    assert abs(direction[3]) > 2 * np.abs(np.delete(direction, 3)).max()


def test_control_states_hardly_move_and_source_states_do_as_the_map_says() -> None:
    """In proportion to the probability of the source."""
    source, control = make_states(gap=20.0)
    unit = UnitEdit(
        torch.linspace(0.5, 1.5, UNITS, dtype=torch.float64), torch.full((UNITS,), 2.0).double()
    )
    direction, offset = fit_gate(source, control)
    edit = gate_map(unit, direction, offset)
    for states, low, high in ((source, 0.9, 1.0), (control, 0.0, 0.1)):
        values = torch.from_numpy(states)
        full = unit.apply_to_outputs(values) - values
        moved = edit.apply_to_outputs(values) - values
        share = torch.sigmoid(values @ torch.from_numpy(direction) + offset)
        torch.testing.assert_close(moved, share[:, None] * full)
        assert low <= float(share.mean()) <= high


def test_strength_beyond_one_overshoots_the_map_and_zero_is_none() -> None:
    """Proportional to the strength."""
    unit = UnitEdit(torch.full((UNITS,), 0.5).double(), torch.ones(UNITS).double())
    edit = gate_map(unit, np.zeros(UNITS), 50.0)  # always open
    values = torch.randn(4, UNITS, dtype=torch.float64)
    torch.testing.assert_close(edit.apply_to_outputs(values), unit.apply_to_outputs(values))
    doubled = edit.scale_moves(2.0).apply_to_outputs(values) - values
    torch.testing.assert_close(doubled, 2.0 * (unit.apply_to_outputs(values) - values))
    assert torch.equal(edit.scale_moves(0.0).apply_to_outputs(values), values)


def test_all_norms_are_gated_and_the_strength_is_tuned(evidence: Evidence) -> None:
    """As far as the budget goes; control texts are neutral ones and the maps' targets."""
    wide = transport_gated(evidence, PatchRequest(max_perplexity_increase=1e6))
    narrow = transport_gated(evidence, PatchRequest(max_perplexity_increase=0.001))
    assert len(wide.edit.adaptive) == 4
    assert wide.parameters["strength"] == transport.MAX_STRENGTH
    assert 0.0 < narrow.parameters["strength"] <= wide.parameters["strength"]
    assert narrow.parameters["calibration_perplexity_increase"] <= 0.001
    assert wide.parameters["n_neutral"] > 0
