"""A patch laid over the base model's files: what each changed tensor is and becomes, as streams.

Reads names and headers at once and values a block of rows at a time; the model itself is never
loaded. The base is known by the patch's digests, so a wrong or changed base is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenshift.base.errors import FoldingError, ModelError
from eigenshift.model.heads import digest_blocks, find_head
from eigenshift.model.parameter_names import (
    build_skeleton,
    choose_key,
    find_embedding_name,
    match_parameters,
)
from eigenshift.model.weight_files import (
    FLOAT_TYPES,
    Checkpoint,
    NewTensor,
    StoredTensor,
    open_checkpoint,
)
from eigenshift.patches.folding import Fold, iterate_row_blocks, plan_folds
from eigenshift.patches.patching import Patch


class UnmatchedParameterError(ModelError):
    """A parameter the patch changes is not one tensor of the files."""


@dataclass(frozen=True)
class BaseParameter:
    """One parameter that a patch changes, in the base's files.

    Attributes:
        stored: The tensor that holds its values.
        key: What it is called in the files, or will be if it gets a tensor of its own.
        dtype: In which the run measured it.
    """

    stored: StoredTensor
    key: str
    dtype: torch.dtype

    def read_rows(self, first: int, n_rows: int) -> Tensor:
        """Some rows as the run's model had them, shape (row, ...)."""
        return self.stored.read_rows(first, n_rows).to(self.dtype)

    def iterate_blocks(self) -> Iterator[Tensor]:
        """All rows in order, in the blocks that folding works in."""
        for first, n_rows in iterate_row_blocks(self.stored.shape):
            yield self.read_rows(first, n_rows)


@dataclass(frozen=True)
class PatchedBase:
    """A base model's files with a patch that fits them.

    Attributes:
        checkpoint: The base's weight files.
        skeleton: The base without values.
        patch: The patch.
        head_name: Name of the output head's module.
        says_tied: The base's configuration says that its head is its input embedding.
        is_tied: It is: the files do not hold two different tensors.
        folds: Parameter -> how it changes.
        parameters: Parameter -> where the base's values are.
        dtype: What the configuration has to say for an export to load in the precision that was
            measured; None leaves it as it is.
    """

    checkpoint: Checkpoint
    skeleton: Any
    patch: Patch
    head_name: str
    says_tied: bool
    is_tied: bool
    folds: Mapping[str, Fold]
    parameters: Mapping[str, BaseParameter]
    dtype: str | None

    @property
    def head_weight(self) -> BaseParameter | None:
        """The head's weight if the patch changes it."""
        return self.parameters.get(f"{self.head_name}.weight")

    @property
    def unties(self) -> bool:
        """Whether the configuration of an export must say otherwise than the base's."""
        return self.says_tied and (not self.is_tied or self.head_weight is not None)

    def make_patched(self) -> dict[str, NewTensor]:
        """Key -> patched values of each parameter that changes."""
        return {
            self.parameters[name].key: self._make_tensor(
                name, lambda name=name: self._iterate_folded(name)
            )
            for name in self.folds
        }

    def make_untied(self) -> dict[str, NewTensor]:
        """Key -> the base's own values of the head's weight."""
        name = f"{self.head_name}.weight"
        parameter = self.parameters[name]
        return {parameter.key: self._make_tensor(name, parameter.iterate_blocks)}

    def _make_tensor(self, name: str, make_blocks: Any) -> NewTensor:
        parameter = self.parameters[name]
        return NewTensor(parameter.dtype, parameter.stored.shape, make_blocks)

    def _iterate_folded(self, name: str) -> Iterator[Tensor]:
        fold = self.folds[name]
        for first, n_rows in iterate_row_blocks(self.parameters[name].stored.shape):
            blocks = [self.parameters[read].read_rows(first, n_rows) for read in fold.reads]
            yield fold.fold_rows(blocks, first)


def open_patched_base(folder: Path, patch: Patch, dtype: str) -> PatchedBase:
    """Find what a patch changes in a model's files.

    Args:
        folder: Of the base model.
        patch: Made for it.
        dtype: In which the run loaded the model: a name of torch's, or "auto".

    Raises:
        FoldingError: The patch has no place in the weights.
        UnmatchedParameterError: A parameter it changes is not one tensor of the files.
        ModelError: The files hold other values than the patch was made for.
    """
    if patch.description.obstacle is not None:
        raise FoldingError(patch.description.obstacle)
    skeleton, checkpoint = build_skeleton(folder), open_checkpoint(folder)
    head_name, _ = find_head(skeleton)
    head_weight = f"{head_name}.weight"
    folds = plan_folds(
        skeleton,
        patch.in_weights,
        head_name=head_name,
        preceding_module=_find_preceding_module(patch, head_name),
    )
    keys = match_parameters(skeleton, checkpoint.tensors)
    embedding = find_embedding_name(skeleton)
    says_tied, dtypes = embedding is not None, _list_dtypes(skeleton, dtype)
    if embedding is not None and _hold_two(checkpoint, keys, (head_weight, embedding), dtypes):
        embedding = None
    parameters = {}
    for name in folds:
        shared = embedding if name == head_weight else None
        candidates = [keys[item] for item in (name, shared) if item in keys]
        if not candidates:
            raise UnmatchedParameterError(_explain_unmatched(folder, name))
        expected = _find_expected_digest(patch, name)
        parameters[name] = _find_values(
            [checkpoint.tensors[key] for key in candidates],
            keys[name] if name in keys else choose_key(skeleton, name, keys),
            dtypes,
            expected,
        )
    was_measured_in = {str(item.dtype).removeprefix("torch.") for item in parameters.values()}
    return PatchedBase(
        checkpoint,
        skeleton,
        patch,
        head_name,
        says_tied=says_tied,
        is_tied=embedding is not None,
        folds=folds,
        parameters=parameters,
        dtype=dtype if dtype in was_measured_in else None,  # quantised weights have their own
    )


def _hold_two(
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    names: tuple[str, str],
    dtypes: list[torch.dtype],
) -> bool:
    """Whether files hold two parameters with different values, as a loaded model would have them.

    transformers ties two tensors only if they are equal in the dtype it loads, whatever the
    configuration says.
    """
    if not all(name in keys for name in names):
        return False
    one, other = (checkpoint.tensors[keys[name]] for name in names)
    dtype = dtypes[0] if dtypes else one.dtype
    if one.shape != other.shape or not {one.type_name, other.type_name} <= FLOAT_TYPES.keys():
        return True
    return any(
        not torch.equal(one.read_rows(*rows).to(dtype), other.read_rows(*rows).to(dtype))
        for rows in iterate_row_blocks(one.shape)
    )


def _find_preceding_module(patch: Patch, head_name: str) -> str | None:
    """The module before the head, where the patch shifts its bias."""
    known = {head_name, *patch.edit.units, *patch.edit.linears}
    modules = {name.rpartition(".")[0] for name in patch.description.tensors} - known
    return next(iter(modules), None)


def _find_expected_digest(patch: Patch, name: str) -> str:
    """Digest of the base's parameter; patches of format 1 know only the head's."""
    change = patch.description.tensors.get(name)
    return patch.description.base_digest if change is None else change.base


def _list_dtypes(skeleton: Any, dtype: str) -> list[torch.dtype]:
    named = skeleton.config.dtype if dtype == "auto" else getattr(torch, dtype)
    return [named] if isinstance(named, torch.dtype) else []


def _find_values(
    candidates: list[StoredTensor], key: str, dtypes: list[torch.dtype], expected: str
) -> BaseParameter:
    """The stored tensor and dtype whose digest is the one the patch was made for.

    Some models keep a few parameters in another dtype than the rest; the digest tells.
    """
    for stored in candidates:
        for dtype in dict.fromkeys([*dtypes, stored.dtype, torch.float32]):
            parameter = BaseParameter(stored, key, dtype)
            if digest_blocks(dtype, stored.shape, parameter.iterate_blocks()) == expected:
                return parameter
    raise ModelError(
        f"{candidates[0].path.name}: expected {key} with digest {expected[:12]}, found other "
        "values. The patch was made for another model, or the files were changed since; restore "
        "the base the patch names."
    )


def _explain_unmatched(folder: Path, name: str) -> str:
    return (
        f"{folder.name}: expected {name} as one tensor of the files, found none that transformers "
        "loads into it as it is. The checkpoint stores it in parts or in another layout. Use "
        "--format merged, which then loads the whole model, or --format patch."
    )
