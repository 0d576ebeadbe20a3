"""The changes a patch is made of, as formulas on states; nothing here knows a model.

`HeadEdit` is an affine change of what enters the output head, of low rank: every intervention on
the head is one. Inside the trunk `LinearEdit` adds a product of low rank to a linear layer and
`UnitEdit` is an affine change of each output unit of a module. All can be applied to states (what a
hook would do) and folded into weights (what is exported); `folding.py` finds the modules and the
tests prove that the two agree. `AdaptiveEdit` is the exception: how it moves a state depends on
where the state lies, so no weights hold it and it is only ever hooked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError

ROWS_PER_BLOCK = 8192
ORTHONORMAL_TOLERANCE = 1e-6
MIN_REMAINING_GAIN = 0.01
"""Below this a direction counts as removed: what is left of it cannot carry a shift."""


@dataclass(frozen=True)
class HeadEdit:
    """h' = h - left (right^T h - target); logits = W h' + b.

    Attributes:
        left: Directions that are taken out, shape (hidden, k), float64 on the CPU.
        right: Directions that are measured, shape (hidden, k).
        target: What is left of each measured value, shape (k,); zero removes it.
    """

    left: Tensor
    right: Tensor
    target: Tensor

    @classmethod
    def scale_directions(
        cls, v: FloatArray, factor: float | Sequence[float], target: FloatArray | None = None
    ) -> HeadEdit:
        """Multiply the head's gain along orthonormal directions by `factor`.

        Args:
            v: Directions, shape (hidden, k), orthonormal columns.
            factor: 0 removes, 1 changes nothing; one for all directions, or one for each.
            target: Values of v^T h that are left as they are, shape (k,): only the deviation from
                them is damped. None is zero: W' = W - (1 - factor)(W V_k) V_k^T.

        Raises:
            ComponentError: A factor is outside 0 to 1, or the columns are not orthonormal.
        """
        factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), v.shape[1])
        for value in factors:
            check_factor(float(value))
        if not np.allclose(v.T @ v, np.eye(v.shape[1]), atol=ORTHONORMAL_TOLERANCE):
            raise ComponentError("directions: expected orthonormal columns, found others.")
        right = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))
        kept = np.zeros(v.shape[1]) if target is None else np.asarray(target, dtype=np.float64)
        return cls(torch.from_numpy(1.0 - factors) * right, right, torch.from_numpy(kept))

    @classmethod
    def add_product(cls, left: Tensor, right: Tensor) -> HeadEdit:
        """What enters the head gains left right^T times itself, W' = W (I + left right^T).

        Args:
            left: Directions that are written, shape (hidden, k).
            right: Directions that are read, shape (hidden, k).
        """
        left, right = left.double().cpu(), right.double().cpu()
        return cls(-left, right, torch.zeros(right.shape[1], dtype=torch.float64))

    @property
    def rank(self) -> int:
        """Number of directions, k."""
        return self.right.shape[1]

    @property
    def hidden(self) -> int:
        """Width of the states."""
        return self.right.shape[0]

    @property
    def has_shift(self) -> bool:
        """Whether logits are shifted by a constant too, so that the head needs a bias."""
        return bool(self.target.any())

    def apply_to_states(self, states: Tensor) -> Tensor:
        """What enters the head instead of `states`, shape (..., hidden), same dtype and device."""
        left, right, target = (tensor.to(states) for tensor in (self.left, self.right, self.target))
        return states - (states @ right - target) @ left.T

    def fold_weight(self, weight: Tensor) -> Tensor:
        """W' = W - (W left) right^T.

        Args:
            weight: Shape (vocab, hidden), any float dtype or device; not modified.

        Returns:
            A new tensor like `weight`; computed in float32 or wider in blocks of rows. An edit
            that changes nothing gives the same bits.

        Raises:
            ComponentError: The edit is for heads of another width.
        """
        self.check_width(weight)
        weight = weight.detach()
        if not self.left.any():
            return weight.clone()
        folded = torch.empty_like(weight)
        width = torch.float64 if weight.dtype == torch.float64 else torch.float32
        left, right = (
            tensor.to(device=weight.device, dtype=width) for tensor in (self.left, self.right)
        )
        for first in range(0, len(weight), ROWS_PER_BLOCK):
            wide = weight[first : first + ROWS_PER_BLOCK].to(width)
            folded[first : first + ROWS_PER_BLOCK] = torch.addmm(
                wide, wide @ left, right.T, alpha=-1
            )
        return folded

    def compute_bias_shift(self, weight: Tensor) -> Tensor:
        """W left target, what the head's bias gains; shape (vocab,), float32 or wider."""
        self.check_width(weight)
        wide = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
        return wide @ (self.left @ self.target).to(wide)

    def find_state_shift(self) -> Tensor | None:
        """A constant d with (I - left right^T)(h + d) = h', shape (hidden,).

        It moves the shift to what precedes the head (the bias of a norm), where the head has no
        bias. None where the edit removes a direction (nearly) entirely: then no d exists, or it
        is so large that rounding would show.
        """
        small = torch.eye(self.rank, dtype=torch.float64) - self.right.T @ self.left
        if float(torch.linalg.svdvals(small)[-1]) < MIN_REMAINING_GAIN:
            return None
        shift: Tensor = self.left @ torch.linalg.solve(small, self.target)
        return shift

    def then(self, second: HeadEdit) -> HeadEdit:
        """The one edit that does this and then `second`."""
        crossing = self.left.T @ second.right
        return HeadEdit(
            torch.cat([self.left, second.left], 1),
            torch.cat([self.right, second.right - self.right @ crossing], 1),
            torch.cat([self.target, second.target - crossing.T @ self.target]),
        )

    def check_width(self, weight: Tensor) -> None:
        """Refuse a head of another width.

        Raises:
            ComponentError: Shapes do not fit.
        """
        if self.hidden != weight.shape[1]:
            raise ComponentError(
                f"directions: expected shape ({weight.shape[1]}, k) for a head of shape "
                f"{tuple(weight.shape)}, found {tuple(self.right.shape)}. The patch is for another "
                "model."
            )


@dataclass(frozen=True)
class UnitEdit:
    """y' = scale * y + shift, for each output unit of one module.

    Attributes:
        scale: Shape (unit,), float64 on the CPU; 1 leaves a unit alone.
        shift: Shape (unit,).
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def scale_units(cls, scale: FloatArray) -> UnitEdit:
        """Scale only."""
        factors = torch.from_numpy(np.ascontiguousarray(scale, dtype=np.float64))
        return cls(factors, torch.zeros_like(factors))

    @property
    def has_shift(self) -> bool:
        """Whether a bias is needed to fold it."""
        return bool(self.shift.any())

    def apply_to_outputs(self, outputs: Tensor) -> Tensor:
        """Outputs of the module, shape (..., unit), changed."""
        return outputs * self.scale.to(outputs) + self.shift.to(outputs)


@dataclass(frozen=True)
class LinearEdit:
    """y' = y + left (right^T x): a linear layer's weight gains left right^T, W (out, in).

    Attributes:
        left: Directions that are written, shape (out, k), float64 on the CPU.
        right: Directions that are read, shape (in, k).
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Number of directions, k."""
        return self.right.shape[1]

    def apply_to_outputs(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of the layer, shape (..., out), changed by its inputs, shape (..., in)."""
        inputs = inputs.to(outputs.device)  # of a divided model from the layer before
        return outputs + (inputs @ self.right.to(inputs)) @ self.left.to(outputs).T

    def then(self, second: LinearEdit) -> LinearEdit:
        """The one edit that does both: changes of a weight add up."""
        return LinearEdit(
            torch.cat([self.left, second.left], 1), torch.cat([self.right, second.right], 1)
        )


@dataclass(frozen=True)
class LogitEdit:
    """raw' = raw + left (right^T h + shift): some tokens' own logits, before scale and soft cap.

    It changes rows of the head, W' = W + left right^T, and its bias, b' = b + left shift. A word
    filter in the weights is one.

    Attributes:
        left: By how much each token is moved, shape (vocab, k), float64 on the CPU.
        right: Directions that are measured, shape (hidden, k).
        shift: What is added to each measured value, shape (k,).
    """

    left: Tensor
    right: Tensor
    shift: Tensor

    @classmethod
    def add_product(cls, left: Tensor, right: Tensor) -> LogitEdit:
        """The head's weight gains left right^T, and nothing is shifted.

        Args:
            left: By how much each token is moved, shape (vocab, k).
            right: Directions that are read, shape (hidden, k).
        """
        left, right = left.double().cpu(), right.double().cpu()
        return cls(left, right, torch.zeros(right.shape[1], dtype=torch.float64))

    @property
    def rank(self) -> int:
        """Number of directions, k."""
        return self.right.shape[1]

    @property
    def n_tokens(self) -> int:
        """How many tokens' logits are moved."""
        return int(self.left.any(1).sum())

    @property
    def has_shift(self) -> bool:
        """Whether a bias is needed to fold it."""
        return bool(self.shift.any())

    def after(self, head: HeadEdit, *, has_bias: bool) -> LogitEdit:
        """The edit that reads states before `head` changes them, and does the same.

        Args:
            head: Comes first.
            has_bias: Its shift is in the head's bias. Otherwise what precedes the head has moved
                the states by it already (`HeadEdit.find_state_shift`).
        """
        right = self.right - head.right @ (head.left.T @ self.right)
        moved = self.right.T @ (head.left @ head.target)
        return LogitEdit(self.left, right, self.shift + moved if has_bias else self.shift)

    def then(self, second: LogitEdit) -> LogitEdit:
        """The one edit that does both: changes of a weight add up."""
        pairs = zip(
            (self.left, self.right, self.shift),
            (second.left, second.right, second.shift),
            strict=True,
        )
        return LogitEdit(*(torch.cat(pair, -1) for pair in pairs))

    def apply_to_logits(self, raw: Tensor, states: Tensor) -> Tensor:
        """The head's own output, shape (..., vocab), changed; of its input, shape (..., hidden)."""
        states = states.to(raw.device)  # of a divided model from the layer before
        amounts = states @ self.right.to(states) + self.shift.to(states)
        return raw + (amounts.to(raw.dtype) @ self.left.to(raw).T)


@dataclass(frozen=True)
class AdaptiveEdit:
    """y' = y + sum over i of g_i(y) (slope_i * y + shift_i), g = softmax(readout^T y + offset).

    A mixture of affine moves: which of them a state takes is read from the state itself. A move of
    zeros among them is "stay".

    Attributes:
        readout: What decides between the moves, shape (unit, move), float64 on the CPU.
        offset: Shape (move,).
        slope: Of each move, in proportion to each unit, shape (unit, move).
        shift: Of each move, by a constant, shape (unit, move).
    """

    readout: Tensor
    offset: Tensor
    slope: Tensor
    shift: Tensor

    def scale_moves(self, strength: float) -> AdaptiveEdit:
        """Go only part of the way, or further; what decides between the moves stays."""
        return AdaptiveEdit(self.readout, self.offset, self.slope * strength, self.shift * strength)

    def apply_to_outputs(self, outputs: Tensor) -> Tensor:
        """Outputs of the module, shape (..., unit), changed; computed in float32 or wider."""
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        readout, offset, slope, shift = (
            tensor.to(wide) for tensor in (self.readout, self.offset, self.slope, self.shift)
        )
        shares = torch.softmax(wide @ readout + offset, -1)
        moved = wide + (shares @ slope.T) * wide + shares @ shift.T
        return moved.to(outputs.dtype)


@dataclass(frozen=True)
class ModelEdit:
    """All that a patch changes.

    Attributes:
        head: Change of what enters the head, or None.
        units: Name of a module inside the model -> change of its output units.
        linears: Name of a linear layer inside the model -> what is added to its weight. Of a module
            that both change, this comes first.
        logits: Change of some tokens' logits after the head, or None; it reads what enters the
            head after `head` has changed it.
        adaptive: Name of a module inside the model -> change of its outputs that depends on them;
            after `linears` and `units` of the same module. Never folded.
    """

    head: HeadEdit | None = None
    units: Mapping[str, UnitEdit] = field(default_factory=dict)
    linears: Mapping[str, LinearEdit] = field(default_factory=dict)
    logits: LogitEdit | None = None
    adaptive: Mapping[str, AdaptiveEdit] = field(default_factory=dict)

    @property
    def changes_trunk(self) -> bool:
        """Whether states inside the model change, so that it has to run for itself."""
        return bool(self.units or self.linears or self.adaptive)

    @property
    def changes_head(self) -> bool:
        """Whether logits change where what enters the head does not."""
        return self.head is not None or self.logits is not None

    @property
    def of_trunk(self) -> ModelEdit:
        """The part that changes the trunk, so that cached states are not the model's own."""
        return ModelEdit(units=self.units, linears=self.linears, adaptive=self.adaptive)

    def of_linears(self, names: Collection[str], *, keeps: bool) -> ModelEdit:
        """Only the products of some linear layers (`keeps`), or all but these."""
        if keeps:
            return ModelEdit(linears={name: self.linears[name] for name in names})
        kept = {name: linear for name, linear in self.linears.items() if name not in names}
        return replace(self, linears=kept)

    def scale(self, strength: float) -> ModelEdit:
        """Go only part of the way, or further: 0 changes nothing, 1 is this edit."""
        head, logits = self.head, self.logits
        return ModelEdit(
            None if head is None else HeadEdit(head.left * strength, head.right, head.target),
            {
                name: UnitEdit(1.0 - strength + strength * unit.scale, strength * unit.shift)
                for name, unit in self.units.items()
            },
            {
                name: LinearEdit(linear.left * strength, linear.right)
                for name, linear in self.linears.items()
            },
            None if logits is None else replace(logits, left=logits.left * strength),
            {name: adaptive.scale_moves(strength) for name, adaptive in self.adaptive.items()},
        )

    def then(self, second: ModelEdit) -> ModelEdit:
        """The one edit that does this and then `second`.

        Raises:
            ComponentError: `second` changes units, or a layer whose units this one changes, or what
                this one's logits have read; or one of them is adaptive. The two are not one edit.
        """
        for name in (*self.adaptive, *second.adaptive):
            raise ComponentError(
                f"patches: expected patches that can be folded into weights, found one that moves "
                f"each state of {name} by what the state is. It cannot be stacked."
            )
        scaled = sorted(set(self.units) & set(second.linears))
        has_read = self.logits is not None and second.head is not None
        if second.units or scaled or has_read:
            names = [
                *["what enters the head, after logits that read it were moved"] * has_read,
                *scaled,
                *["units of the trunk"] * bool(second.units),
            ]
            raise ComponentError(
                "patches: expected a second patch of the head or of other linear layers, found one "
                f"that changes {names[-1]}. Apply that one first."
            )
        linears = dict(self.linears)
        for name, edit in second.linears.items():
            linears[name] = linears[name].then(edit) if name in linears else edit
        head = second.head if self.head is None else self.head
        if self.head is not None and second.head is not None:
            head = self.head.then(second.head)
        logits = second.logits if self.logits is None else self.logits
        if self.logits is not None and second.logits is not None:
            logits = self.logits.then(second.logits)
        return ModelEdit(head, self.units, linears, logits)


def check_factor(factor: float) -> None:
    """Refuse to amplify or flip a component.

    Raises:
        ComponentError: The factor is outside 0 to 1.
    """
    if not 0.0 <= factor <= 1.0:
        raise ComponentError(f"factor: expected 0 to 1, found {factor}.")
