"""Rounds: what each may spend, what is shipped, and when there is nothing to ship."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.fisher.rounds import GROWTH, Direction, Study, spend_budget


def make_edit(size: float) -> ModelEdit:
    """A change of the head of one number."""
    left, right = (torch.tensor([[value]], dtype=torch.float64) for value in (size, 1.0))
    return ModelEdit(HeadEdit(left, right, torch.zeros(1, dtype=torch.float64)))


def find_size(edit: ModelEdit) -> float:
    """That number."""
    assert edit.head is not None
    return float(edit.head.left.sum())


class Square(Study):
    """A model whose cost is the square of how far it has been moved; `loss` is lost when cut."""

    def __init__(self, price: float = 1.0, loss: float = 0.0) -> None:
        self.price, self.loss = price, loss
        self.taken = 0.0
        self.spent: list[float] = []
        self.n_directions = 0

    def find_direction(self) -> Direction:
        """One number further."""
        self.n_directions += 1
        return make_edit

    def measure(self, edit: ModelEdit) -> float:
        """Nats, with all that was taken."""
        return self.price * (self.taken + find_size(edit)) ** 2

    def take(self, edit: ModelEdit) -> None:
        """Further."""
        self.taken += find_size(edit)
        self.spent.append(self.price * self.taken**2)

    def finish(self) -> Direction:
        """What was taken, and a little that the cut changes."""
        whole, self.taken = self.taken * (1.0 + self.loss), 0.0
        return lambda strength: make_edit(strength * whole)


@pytest.mark.parametrize("n_rounds", [1, 2, 3, 5])
def test_each_round_spends_its_share(n_rounds: int) -> None:
    """(r / R)^1.5 of the budget after round r, nearly; all of it in the end."""
    study = Square()
    edit = spend_budget(study, n_rounds, 0.2)
    assert len(study.spent) == study.n_directions == n_rounds
    for number, spent in enumerate(study.spent, start=1):
        allowed = math.log1p(0.2 * (number / n_rounds) ** GROWTH)
        assert 0.94 * allowed <= spent <= allowed
    assert 0.94 * math.log1p(0.2) <= study.measure(edit) <= math.log1p(0.2)


@pytest.mark.parametrize("loss", [-0.2, 0.3])
def test_what_is_shipped_is_brought_to_the_budget_again(loss: float) -> None:
    """Terms that were dropped may have made it dearer or cheaper."""
    study = Square(loss=loss)
    cost = study.measure(spend_budget(study, 3, 0.1))
    assert 0.94 * math.log1p(0.1) <= cost <= math.log1p(0.1)


def test_where_no_step_is_in_budget_nothing_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """The first round ends it; what comes back changes nothing."""

    class Steep(Square):
        """Any step costs ten nats."""

        def measure(self, edit: ModelEdit) -> float:
            """Unless nothing is moved."""
            return 10.0 if self.taken + find_size(edit) else 0.0

    study = Steep()
    with caplog.at_level(logging.INFO, "eigenshift"):
        edit = spend_budget(study, 3, 0.05)
    assert (study.spent, study.n_directions) == ([], 1)
    assert find_size(edit) == 0.0
    assert "fisher round: number=1 strength=0" in caplog.text
