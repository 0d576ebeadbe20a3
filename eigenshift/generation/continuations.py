"""Seeded continuations of prompts, of the base and of patched arms.

Reads prompts (`schemas.PROMPTS`); writes `continuations.parquet` (`schemas.CONTINUATIONS`), one
table per arm. Every (prompt, sample) has random numbers of its own (`sampling.py`), so a
continuation depends neither on the batch it was in nor on its place nor on the arms beside it, and
arms share their randomness. Arms that differ in the head only are generated together
(`decoding.py`); those that change the trunk one by one. Judging the text is `scoring.py`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eigenshift.generation.decoding import HeadBranch, sample_batch
from eigenshift.generation.records import (
    EncodedPrompt,
    describe_batch,
    encode_prompts,
    write_rows,
)
from eigenshift.generation.sampling import draw_keys
from eigenshift.generation.served import ServedShard, serve_continuations
from eigenshift.generation.stages import ArmPiece, LongArmPiece
from eigenshift.model.batching import plan_batches, run_in_batches
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import Patch, check_base, open_patch, patched_model
from eigenshift.settings import Backend, SamplingSettings
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedArm:
    """One variant to generate with.

    Attributes:
        patch: What changes; None is the base.
        stream: Name of the random stream; arms that are to share randomness share it.
    """

    patch: Patch | None
    stream: str = "main"

    @property
    def changes_trunk(self) -> bool:
        """Whether it has to run by itself."""
        return self.patch is not None and self.patch.edit.changes_trunk


def generate_continuations(
    language_model: LanguageModel,
    prompts: pa.Table,
    arms: Mapping[str, LoadedArm],
    settings: SamplingSettings,
    *,
    sequences_per_batch: int,
    workspaces: Mapping[str, Workspace],
) -> Iterator[tuple[str, ...]]:
    """Continue every prompt `settings.n_samples` times with every arm.

    Args:
        language_model: The unpatched model.
        prompts: `schemas.PROMPTS` rows.
        arms: What to generate with, by name.
        settings: Sampling settings.
        sequences_per_batch: Sequences generated at once, over all arms, fewer where memory runs
            out; does not change the result.
        workspaces: Receives the table of each arm, by the arms' names.

    Yields:
        Names of arms whose tables are written.

    Raises:
        ComponentError: A patch was made for another model.
        ModelError: A token of a prompt is unknown to the model.
    """
    encoded = encode_prompts(language_model, prompts, settings)
    encoded.sort(key=lambda prompt: (len(prompt.token_ids), prompt.prompt_id))
    together = tuple(name for name, arm in arms.items() if not arm.changes_trunk)
    alone = [(name,) for name, arm in arms.items() if arm.changes_trunk]
    for names in [together, *alone] if together else alone:
        started = time.perf_counter()
        rows = _continue_prompts(
            language_model,
            encoded,
            {name: arms[name] for name in names},
            settings,
            sequences_per_batch,
        )
        elapsed = time.perf_counter() - started
        for name in names:
            write_rows(rows[name], len(encoded), elapsed / len(names), workspaces[name])
        n_tokens = sum(len(row["token_ids"]) for name in names for row in rows[name])
        logger.info(
            "generated: arms=%d prompts=%d continuations=%d tokens=%d tokens_per_second=%.0f",
            len(names),
            len(encoded),
            sum(len(found) for found in rows.values()),
            n_tokens,
            n_tokens / elapsed,
        )
        yield names


def _continue_prompts(
    language_model: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    arms: Mapping[str, LoadedArm],
    settings: SamplingSettings,
    sequences_per_batch: int,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each arm; several arms differ in the head only, one alone may differ anywhere."""
    head_patches = {
        name: arm.patch
        for name, arm in arms.items()
        if arm.patch is not None and not arm.changes_trunk
    }
    check_base(language_model, *head_patches.values())
    edits = {name: patch.edit for name, patch in head_patches.items()}
    trunk_patch = next((arm.patch for arm in arms.values() if arm.changes_trunk), None)

    def sample(batch: list[int]) -> list[list[list[int]]]:
        chosen = [prompts[place] for place in batch]
        keys = {
            stream: _draw_keys(chosen, settings, stream)
            for stream in {arm.stream for arm in arms.values()}
        }
        return sample_batch(
            language_model,
            [prompt.token_ids for prompt in chosen],
            [
                HeadBranch(edits.get(name, ModelEdit()), keys[arm.stream])
                for name, arm in arms.items()
            ],
            settings,
        )

    key = (language_model.digest, str(language_model.device), "generation")
    sizes = [settings.n_samples * len(arms)] * len(prompts)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    with language_model.lock, patched_model(language_model, trunk_patch):
        for batch, found in run_in_batches(key, sizes, sequences_per_batch, plan_batches, sample):
            chosen = [prompts[place] for place in batch]
            for name, token_ids in zip(arms, found, strict=True):
                rows[name].extend(
                    describe_batch(language_model.tokenizer, chosen, token_ids, settings.n_samples)
                )
    return rows


def _draw_keys(
    prompts: Sequence[EncodedPrompt], settings: SamplingSettings, stream: str
) -> npt.NDArray[np.uint64]:
    """The random numbers of every continuation of these prompts, in their order."""
    return np.stack(
        [
            draw_keys(settings.seed, stream, prompt.prompt_id, sample, settings.n_tokens)
            for prompt in prompts
            for sample in range(settings.n_samples)
        ]
    )


def carry_out(
    pieces: Mapping[str, ArmPiece],
    bench: Bench,
    workspaces: Mapping[str, Workspace],
) -> Iterator[tuple[str, ...]]:
    """The work of the stage `generate_continuations`.

    By our own loop, all arms on one shard of prompts; by an engine, one arm on several shards.
    """
    yield from _generate(pieces, _read_prompts(pieces, bench), bench, workspaces)


def carry_out_long(
    pieces: Mapping[str, LongArmPiece],
    bench: Bench,
    workspaces: Mapping[str, Workspace],
) -> Iterator[tuple[str, ...]]:
    """The work of the stage `generate_long_continuations`: the first prompts of a shard."""
    shards = _read_prompts(pieces, bench)
    prompts = {name: shards[name][: piece.key.n_prompts] for name, piece in pieces.items()}
    yield from _generate(pieces, prompts, bench, workspaces)


def _read_prompts(
    pieces: Mapping[str, ArmPiece] | Mapping[str, LongArmPiece], bench: Bench
) -> dict[str, pa.Table]:
    """The prompts of each piece; a file that several read is read once."""
    files = dict.fromkeys(piece.inputs.prompts for piece in pieces.values())
    tables = {file: bench.artifacts.read_table(file) for file in files}
    return {name: tables[piece.inputs.prompts] for name, piece in pieces.items()}


def _generate(
    pieces: Mapping[str, ArmPiece] | Mapping[str, LongArmPiece],
    prompts: Mapping[str, pa.Table],
    bench: Bench,
    workspaces: Mapping[str, Workspace],
) -> Iterator[tuple[str, ...]]:
    """Continue each piece's prompts, by what its key says."""
    arms = {name: _load_arm(piece, bench) for name, piece in pieces.items()}
    first = next(iter(pieces))
    key, patch = pieces[first].key, arms[first].patch
    if key.backend is Backend.transformers:
        groups = [list(pieces)]
    elif patch is not None and patch.description.obstacle is not None:
        logger.info(
            "no place in the weights, so drawn by our own loop: patch=%s",
            patch.description.intervention,
        )
        groups = [[name] for name in pieces]
    else:
        model = bench.artifacts.open(pieces[first].inputs.model)
        shards = {
            name: ServedShard(prompts[name], arms[name].stream, workspaces[name]) for name in pieces
        }
        yield from serve_continuations(
            bench.model,
            patch,
            shards,
            key.generation,
            dtype=model.manifest.facts["head"]["dtype"],
            execution=bench.execution,
        )
        return
    with use_model(bench.model, bench.execution) as language_model:
        for names in groups:
            yield from generate_continuations(
                language_model,
                prompts[names[0]],
                {name: arms[name] for name in names},
                key.generation,
                sequences_per_batch=bench.execution.sequences_per_batch,
                workspaces={name: workspaces[name] for name in names},
            )


def _load_arm(piece: ArmPiece | LongArmPiece, bench: Bench) -> LoadedArm:
    reference = piece.inputs.patch
    patch = None if reference is None else open_patch(bench.artifacts.open(reference))
    return LoadedArm(patch, piece.key.stream)
