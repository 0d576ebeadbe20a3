"""Read a model's activations for many texts: one pooled value per text, layer and unit.

Reads samples and a model; writes `activations.parquet` (schema: `schemas.activations_schema`), one
row per (layer, sample), ordered by layer and then as the samples, one row group per layer so that
`WHERE layer = k` reads one. Values are pooled inside the forward pass; states of single tokens are
never kept. What the values say about toxicity is `statistics.py`.

Texts are tokenised as the tokenizer does by default, special tokens included; those count as real
tokens. A text that gives no token is given BOS (else EOS), so no row is lost.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from eigenshift.artifacts import Workspace
from eigenshift.batching import run_in_batches
from eigenshift.errors import ArtifactError, ModelError, SettingsError
from eigenshift.models import TextModel, list_layers, require_known_tokens
from eigenshift.schemas import activations_schema
from eigenshift.settings import ActivationSettings, Pooling, Site, SitePooling

logger = logging.getLogger(__name__)

STEP_VERSION = 1
FILE_NAME = "activations.parquet"

# Names of the MLP's linear layers inside a block, as in transformers' model classes. To add an
# architecture, add its name here; a dotted name matches the end of the path inside the block.
UP_NAMES = (
    *("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "ffn_up"),
    *("intermediate.dense", "lin1", "wi", "wi_1"),  # BERT, DistilBERT, T5
)
GATE_NAMES = ("gate_proj", "ffn_gate", "wi_0")
FUSED_NAMES = ("gate_up_proj",)  # output = gate, then up
DOWN_NAMES = (
    *("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "ffn_down"),
    *("output.dense", "lin2", "wo"),
)
ATTENTION_NAMES = frozenset(
    {"attn", "attention", "self_attn", "self_attention", "crossattention", "encoder_attn"}
)
EXPERT_NAMES = frozenset({"experts", "router", "block_sparse_moe", "local_experts", "moe"})
EXPERT_CLASSES = ("moe", "moeblock", "experts", "router")  # ends of class names, lower case
MAX_PADDING_SHARE = 0.1  # of a batch; beyond it, a new batch costs less than the padding


@dataclass(frozen=True)
class Tap:
    """Where one site of one layer is read.

    Attributes:
        layer: 0 = first.
        site: What is read.
        module: The module to hook.
        reads_input: Read what enters the module rather than what leaves it.
        part: Which half of a fused output (0 = gate, 1 = up), or None for all of it.
    """

    layer: int
    site: Site
    module: nn.Module
    reads_input: bool = False
    part: int | None = None


@dataclass(frozen=True)
class TokenMask:
    """Which positions of a batch are real tokens.

    Attributes:
        is_real: Shape (batch, position), bool.
        weights: 1 / n_tokens at real tokens, else 0; shape (batch, 1, position), float32.
        last: Index of each row's last real token, shape (batch,).
        has_padding: Whether any position is not real.
    """

    is_real: Tensor
    weights: Tensor
    last: Tensor
    has_padding: bool

    @classmethod
    def of(cls, is_real: Tensor) -> TokenMask:
        """Derive the rest from `is_real`; every row has at least one real token."""
        positions = torch.arange(is_real.shape[1], device=is_real.device)
        counts = is_real.sum(dim=1, keepdim=True)
        weights = (is_real.float() / counts).unsqueeze(1)
        last = (is_real * positions).argmax(dim=1)
        return cls(is_real, weights, last, not bool(is_real.all()))


def extract_shard(
    text_model: TextModel,
    samples: pa.Table,
    settings: ActivationSettings,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Write the pooled activations of every sample.

    Holds one shard's values in memory: n_layers * n_samples * units * 2 or 4 bytes.

    Args:
        text_model: The model; its lock is held while it runs.
        samples: Table with sample_id and text, at least one row.
        settings: Sites, poolings, layers, precision, truncation.
        tokens_per_batch: Token budget of a forward pass; changes the results by rounding only.
        workspace: Receives `activations.parquet`, and the facts n_samples, n_tokens, n_truncated,
            n_nonfinite (stored values that are NaN or infinite), max_tokens (the limit in force:
            the setting, or the model's positions if fewer), seconds, tokens_per_second.

    Raises:
        ArtifactError: There are no samples.
        ModelError: The model lacks a site or gives states of an unknown shape.
        SettingsError: A layer does not exist.
    """
    started = time.perf_counter()
    if samples.num_rows == 0:
        raise ArtifactError(
            "samples: expected at least one row, found none. The shard is empty; ingest again."
        )
    taps = find_taps(text_model.model, settings)
    limit = find_token_limit(text_model.model, settings.max_tokens)
    token_ids, n_truncated = encode_texts(text_model, samples["text"].to_pylist(), limit)
    values = pool_texts(
        text_model, taps, token_ids, settings.sites, tokens_per_batch, settings.precision
    )
    seconds = time.perf_counter() - started
    counts = np.array([len(row) for row in token_ids], dtype=np.int32)
    _write_layers(samples["sample_id"], counts, values, settings, workspace)
    n_tokens = int(counts.sum())
    workspace.facts |= {
        "n_samples": samples.num_rows,
        "n_tokens": n_tokens,
        "n_truncated": n_truncated,
        "n_nonfinite": sum(int((~np.isfinite(array)).sum()) for array in values.values()),
        "max_tokens": limit,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(n_tokens / seconds, 1),
    }


def find_taps(model: Any, settings: ActivationSettings) -> list[Tap]:
    """Find where the asked-for sites of the asked-for layers are read.

    Raises:
        ModelError: A layer lacks a site; the message lists those it has.
        SettingsError: A layer does not exist.
    """
    blocks = list_layers(model)
    layers = range(len(blocks)) if settings.layers is None else sorted(set(settings.layers))
    outside = [layer for layer in layers if layer >= len(blocks)]
    if outside or not layers:
        raise SettingsError(
            f"activations.layers: expected layers 0 to {len(blocks) - 1}, found "
            f"{', '.join(map(str, outside)) or 'an empty list'}. The model has {len(blocks)} "
            "layers; leave the setting empty for all."
        )
    sites = list(dict.fromkeys(site_pooling.site for site_pooling in settings.sites))
    taps = []
    for layer in layers:
        found = list_sites(blocks[layer], layer)
        for site in sites:
            if site not in found:
                raise ModelError(_explain_missing_site(model, blocks[layer], layer, site, found))
            taps.append(found[site])
    return taps


def name_sites(text_model: TextModel) -> list[str]:
    """Names of the sites the model's first block has."""
    return [site.value for site in list_sites(list_layers(text_model.model)[0], 0)]


def list_sites(block: nn.Module, layer: int) -> dict[Site, Tap]:
    """The sites one block has. A block with experts has only its output."""
    found = {Site.residual: Tap(layer, Site.residual, block)}
    if _has_experts(block):
        return found
    up, gate, fused, down = (
        _find_linear(block, names) for names in (UP_NAMES, GATE_NAMES, FUSED_NAMES, DOWN_NAMES)
    )
    if up is not None:
        found[Site.mlp_up] = Tap(layer, Site.mlp_up, up)
    if gate is not None:
        found[Site.mlp_gate] = Tap(layer, Site.mlp_gate, gate)
    if fused is not None:
        found[Site.mlp_gate] = Tap(layer, Site.mlp_gate, fused, part=0)
        found[Site.mlp_up] = Tap(layer, Site.mlp_up, fused, part=1)
    if down is not None:
        found[Site.mlp_down] = Tap(layer, Site.mlp_down, down)
        found[Site.mlp_activation] = Tap(layer, Site.mlp_activation, down, reads_input=True)
    return found


def find_token_limit(model: Any, max_tokens: int) -> int:
    """The setting, or the number of positions the model has if that is smaller.

    RoBERTa and its kin count positions from behind the padding's, so they have fewer of them.
    """
    n_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(n_positions, int):
        return max_tokens
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            n_positions -= module.padding_idx + 1
    return min(max_tokens, n_positions)


def encode_texts(
    text_model: TextModel, texts: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], int]:
    """Tokenise texts with the tokenizer's default special tokens.

    Returns:
        Token ids of each text, 1 to `max_tokens` of them, and how many texts were truncated.

    Raises:
        ModelError: A token id is outside the model's vocabulary.
    """
    tokenizer = text_model.tokenizer
    with text_model.lock:
        encoded = [list(row) for row in tokenizer(list(texts), verbose=False)["input_ids"]]
        too_long = [index for index, row in enumerate(encoded) if len(row) > max_tokens]
        for index in too_long:
            shortened = tokenizer(texts[index], truncation=True, max_length=max_tokens)["input_ids"]
            encoded[index] = list(shortened)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [row or [start if start is not None else 0] for row in encoded]
    require_known_tokens(text_model, (token for row in encoded for token in row))
    return encoded, len(too_long)


def pool_texts(
    text_model: TextModel,
    taps: Sequence[Tap],
    token_ids: Sequence[Sequence[int]],
    sites: Sequence[SitePooling],
    tokens_per_batch: int,
    precision: str = "float32",
    padding_side: Literal["right", "left"] = "right",
) -> dict[tuple[int, str], np.ndarray[Any, np.dtype[Any]]]:
    """Run the model's trunk over all texts and pool each site.

    Args:
        text_model: The model.
        taps: Where to read.
        token_ids: Ids of each text, at least one each.
        sites: Sites and poolings.
        tokens_per_batch: Token budget of a forward pass, padding included; smaller ones are tried
            where memory runs out.
        precision: "float16" or "float32", of the returned arrays; pooling is in float32.
        padding_side: Results do not depend on it; tests prove that.

    Returns:
        (layer, column) -> array of shape (text, unit), in the order of `token_ids`.
    """
    poolings: dict[Site, list[SitePooling]] = {}
    for site_pooling in dict.fromkeys(sites):
        poolings.setdefault(site_pooling.site, []).append(site_pooling)
    dtype = torch.float16 if precision == "float16" else torch.float32
    values: dict[tuple[int, str], np.ndarray[Any, np.dtype[Any]]] = {}

    def pool(batch: list[int]) -> dict[tuple[int, str], Tensor]:
        rows = [token_ids[index] for index in batch]
        return _pool_batch(text_model, taps, rows, poolings, padding_side)

    lengths = [len(row) for row in token_ids]
    key_of_budget = (text_model.digest, str(text_model.device), "extraction")
    for batch, pooled in run_in_batches(
        key_of_budget, lengths, tokens_per_batch, plan_batches, pool
    ):
        for key, tensor in pooled.items():
            array = tensor.to(dtype).cpu().numpy()
            if key not in values:
                values[key] = np.empty((len(token_ids), array.shape[1]), dtype=array.dtype)
            values[key][batch] = array
    return values


def plan_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group texts of similar length, longest first.

    Args:
        lengths: Tokens of each text.
        tokens_per_batch: Largest rows * longest row; a single longer text is a batch by itself.

    Returns:
        Indices into `lengths`; every one occurs once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    n_real = 0
    for index in order:
        if batches:
            n_padded = (len(batches[-1]) + 1) * lengths[batches[-1][0]]
            padding_share = 1 - (n_real + lengths[index]) / n_padded
            is_large = 2 * n_padded > tokens_per_batch
            if n_padded <= tokens_per_batch and not (
                is_large and padding_share > MAX_PADDING_SHARE
            ):
                batches[-1].append(index)
                n_real += lengths[index]
                continue
        batches.append([index])
        n_real = lengths[index]
    return batches


def pool_tokens(states: Tensor, mask: TokenMask, pooling: Pooling) -> Tensor:
    """Reduce states over each row's real tokens.

    Args:
        states: Shape (batch, position, unit), any float dtype.
        mask: Real positions, on the same device.
        pooling: max, mean or last.

    Returns:
        Shape (batch, unit), float32.
    """
    if pooling is Pooling.mean:
        return torch.bmm(mask.weights, states.float()).squeeze(1)
    if pooling is Pooling.last:
        rows = torch.arange(len(states), device=states.device)
        return states[rows, mask.last].float()
    if mask.has_padding:
        states = states.masked_fill(~mask.is_real.unsqueeze(-1), -torch.inf)
    return states.amax(dim=1).float()


@torch.inference_mode()
def _pool_batch(
    text_model: TextModel,
    taps: Sequence[Tap],
    rows: Sequence[Sequence[int]],
    poolings: Mapping[Site, Sequence[SitePooling]],
    padding_side: Literal["right", "left"],
) -> dict[tuple[int, str], Tensor]:
    """One forward pass: (layer, column) -> shape (batch, unit), float32, on the device."""
    input_ids, is_real = _pad(rows, text_model.tokenizer.pad_token_id, padding_side)
    device = text_model.device
    mask = TokenMask.of(is_real.to(device))
    pooled: dict[tuple[int, str], Tensor] = {}

    def pool(tap: Tap, value: Any) -> None:
        states = _read_states(tap, value, mask.is_real.shape)
        for site_pooling in poolings[tap.site]:
            key = (tap.layer, site_pooling.column)
            if key in pooled:
                raise ModelError(
                    f"layer {tap.layer}, {tap.site.value}: expected the module to run once per "
                    "forward pass, found twice. The model shares modules between layers; read "
                    "another site."
                )
            pooled[key] = pool_tokens(states, mask, site_pooling.pooling)

    with text_model.lock, _hook(taps, pool):
        trunk = text_model.trunk
        arguments: dict[str, Any] = {
            "input_ids": input_ids.to(device),
            "attention_mask": mask.is_real.long(),
        }
        accepted = inspect.signature(trunk.forward).parameters
        if "use_cache" in accepted:
            arguments["use_cache"] = False
        if padding_side == "left" and "position_ids" in accepted:
            arguments["position_ids"] = (mask.is_real.cumsum(dim=1) - 1).clamp_min(0)
        trunk(**arguments)
    expected = sum(len(poolings[tap.site]) for tap in taps)
    if len(pooled) != expected:
        raise ModelError(
            f"{text_model.id}: expected {expected} pooled sites from a forward pass, found "
            f"{len(pooled)}. The model does not call some of its layers as modules; read another "
            "site."
        )
    return pooled


@contextmanager
def _hook(taps: Sequence[Tap], pool: Callable[[Tap, Any], None]) -> Iterator[None]:
    """Call `pool` with what enters or leaves each tapped module."""
    handles = []
    for tap in taps:
        if tap.reads_input:
            handles.append(
                tap.module.register_forward_pre_hook(
                    lambda _module, args, tap=tap: pool(tap, args[0])
                )
            )
        else:
            handles.append(
                tap.module.register_forward_hook(
                    lambda _module, _args, output, tap=tap: pool(tap, output)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read_states(tap: Tap, value: Any, shape: torch.Size) -> Tensor:
    """Return states of shape (batch, position, unit); OPT's come as (batch * position, unit)."""
    states = value[0] if isinstance(value, tuple | list) else value
    if isinstance(states, Tensor):
        if states.ndim == 2 and states.shape[0] == shape.numel():
            states = states.view(*shape, -1)
        if states.ndim == 3 and states.shape[:2] == shape:
            return states if tap.part is None else states.chunk(2, dim=-1)[tap.part]
    found = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    raise ModelError(
        f"layer {tap.layer}, {tap.site.value}: expected states of shape {tuple(shape)} and units, "
        f"found {found}. The model arranges its tokens in a way that is not supported; read "
        "another site."
    )


def _pad(
    rows: Sequence[Sequence[int]], pad_token_id: int, side: Literal["right", "left"]
) -> tuple[Tensor, Tensor]:
    """Return token ids and where they are real, both of shape (batch, position)."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    is_real = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[index, place] = torch.tensor(row)
        is_real[index, place] = True
    return input_ids, is_real


def _find_linear(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The one module outside attention that has one of these names, or None."""
    found = []
    for path, module in block.named_modules():
        is_named = any(path == name or path.endswith(f".{name}") for name in names)
        if is_named and not ATTENTION_NAMES.intersection(path.split(".")):
            found.append(module)
    return found[0] if len(found) == 1 else None


def _has_experts(block: nn.Module) -> bool:
    return any(
        EXPERT_NAMES.intersection(path.split("."))
        or type(module).__name__.lower().endswith(EXPERT_CLASSES)
        for path, module in block.named_modules()
        if path
    )


def _explain_missing_site(
    model: Any, block: nn.Module, layer: int, site: Site, found: Mapping[Site, Tap]
) -> str:
    name = getattr(model.config, "_name_or_path", "") or "model"
    place = f"{name} ({type(model).__name__}), layer {layer}: expected site {site.value}, found"
    remedy = f"Choose from: {', '.join(item.value for item in found)} (activations.sites)."
    if _has_experts(block):
        return f"{place} a mixture of experts. Sites inside experts are not supported. {remedy}"
    return f"{place} none. The layer has no such part, or under an unknown name. {remedy}"


def _write_layers(
    sample_ids: pa.ChunkedArray,
    counts: np.ndarray[Any, np.dtype[np.int32]],
    values: Mapping[tuple[int, str], np.ndarray[Any, np.dtype[Any]]],
    settings: ActivationSettings,
    workspace: Workspace,
) -> None:
    """Write one row group per layer."""
    layers = sorted({layer for layer, _ in values})
    columns = list(dict.fromkeys(site_pooling.column for site_pooling in settings.sites))
    widths = {column: values[layers[0], column].shape[1] for column in columns}
    schema = activations_schema(widths, settings.precision)
    # Byte-stream-split makes float32 a quarter smaller; DuckDB cannot read it for float16.
    is_split = settings.precision == "float32"
    with pq.ParquetWriter(
        workspace.path(FILE_NAME),
        schema,
        compression="zstd",
        use_dictionary=["sample_id"],
        use_byte_stream_split=[f"{name}.list.element" for name in columns] if is_split else False,
    ) as writer:
        for layer in layers:
            arrays = [
                sample_ids.combine_chunks(),
                pa.array(np.full(len(counts), layer, dtype=np.int16)),
                pa.array(counts),
                *(
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(_take_values(values, layer, column, widths[column])),
                        widths[column],
                    )
                    for column in columns
                ),
            ]
            table = pa.Table.from_arrays(arrays, schema=schema)
            writer.write_table(table, row_group_size=len(counts))


def _take_values(
    values: Mapping[tuple[int, str], np.ndarray[Any, np.dtype[Any]]],
    layer: int,
    column: str,
    width: int,
) -> np.ndarray[Any, np.dtype[Any]]:
    """One layer's values, flat; all layers of a column must have the same width."""
    array = values[layer, column]
    if array.shape[1] != width:
        raise ModelError(
            f"layer {layer}, {column}: expected {width} units as in the first layer, found "
            f"{array.shape[1]}. The model's layers differ in width. Read them one width at a time "
            "(activations.layers)."
        )
    return array.reshape(-1)
