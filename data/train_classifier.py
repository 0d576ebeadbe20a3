"""Train a small BERT-shaped multi-label classifier and save it as a Detoxify checkpoint.

Reads texts and labels handed over by the caller; writes `detoxify_demo.ckpt` (a `torch.save` of
tensors and plain containers only, so `torch.load(..., weights_only=True)` opens it) and `config/`
(`config.json` and the tokenizer), which is what `Detoxify(checkpoint=...,
huggingface_config_path=...)` needs to load offline. Works on any corpus with any label names.

Trap: Detoxify calls `from_pretrained(arch.args.model_type)` even when it is given a config folder.
The checkpoint stores the plain name `MODEL_TYPE`; to load it offline, hand Detoxify a temporary
copy in which that name is the config folder's absolute path (`copy_for_detoxify` does it).
"""

import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

JIGSAW_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
CHECKPOINT_NAME = "detoxify_demo.ckpt"
CONFIG_FOLDER = "config"
MODEL_TYPE = "eigenshift-demo-bert"
UNKNOWN = "[UNK]"
SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
WARM_UP_SHARE = 0.1  # of all steps
LOG_EVERY_STEPS = 100

logger = logging.getLogger(__name__)


def train_classifier(
    texts: Sequence[str],
    labels: Mapping[str, ArrayLike],
    out: Path,
    *,
    vocab_size: int = 2000,
    n_layer: int = 2,
    n_head: int = 4,
    n_embd: int = 96,
    n_positions: int = 128,
    steps: int = 1000,
    batch_texts: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    dropout: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, float]:
    """Train on `texts` and save checkpoint and config folder to `out`.

    Args:
        texts: Training texts, any language; each is cut to `n_positions` tokens.
        labels: Label name -> one number per text: 0, 1, a probability between, or NaN where the
            text has no such label (it then adds nothing to that label's loss). The order of the
            names is the order of the classifier's outputs.
        out: Folder to write; made if missing.
        vocab_size: Upper bound on the WordPiece vocabulary.
        n_layer: Number of transformer blocks.
        n_head: Attention heads per block; divides `n_embd`.
        n_embd: Width of the hidden state; the feed-forward width is twice this.
        n_positions: Longest text in tokens, `[CLS]` and `[SEP]` included.
        steps: Optimiser steps.
        batch_texts: Texts per step.
        learning_rate: Peak of a warm-up and linear decay schedule.
        weight_decay: AdamW decay of the matrices.
        dropout: Probability, everywhere BERT has dropout.
        seed: Fixes the initial weights and the order of the data.
        device: Torch device to train on.

    Returns:
        `n_parameters`, `vocab_size`, `final_loss` (mean binary cross-entropy of the last steps),
        `elapsed_seconds`.
    """
    targets = _stack_labels(texts, labels)
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = _train_wordpiece(texts, vocab_size=vocab_size, n_positions=n_positions)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=n_embd,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=2 * n_embd,
        max_position_embeddings=n_positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=len(labels),
        problem_type="multi_label_classification",
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForSequenceClassification(config).to(device)
    final_loss = _run_steps(
        model,
        tokenizer,
        texts,
        targets,
        steps=steps,
        batch_texts=batch_texts,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        rng=random.Random(seed),
    )
    _save_checkpoint(model, tokenizer, tuple(labels), out)
    return {
        "n_parameters": float(sum(p.numel() for p in model.parameters())),
        "vocab_size": float(len(tokenizer)),
        "final_loss": final_loss,
        "elapsed_seconds": time.monotonic() - started,
    }


def score_texts(
    folder: Path, texts: Sequence[str], n_texts_at_once: int = 128
) -> dict[str, np.ndarray]:
    """Score texts with a saved checkpoint; label name -> probabilities, shape (texts,)."""
    checkpoint = torch.load(folder / CHECKPOINT_NAME, weights_only=True)
    config = BertConfig.from_pretrained(folder / CONFIG_FOLDER)
    tokenizer = BertTokenizerFast.from_pretrained(folder / CONFIG_FOLDER)
    model = BertForSequenceClassification(config).eval()
    model.load_state_dict(checkpoint["state_dict"])
    parts = []
    with torch.no_grad():
        for first in range(0, len(texts), n_texts_at_once):
            batch = list(texts[first : first + n_texts_at_once])
            inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=True)
            parts.append(torch.sigmoid(model(**inputs).logits).numpy())
    scores = np.concatenate(parts)
    names = checkpoint["config"]["dataset"]["args"]["classes"]
    return {name: scores[:, index] for index, name in enumerate(names)}


def copy_for_detoxify(folder: Path, copy: Path) -> Path:
    """Write a copy of the checkpoint that Detoxify can load offline, and return its path.

    Args:
        folder: What `train_classifier` wrote.
        copy: Path of the new checkpoint file. It names `folder/config` by absolute path, so it is
            good on this machine only.
    """
    checkpoint = torch.load(folder / CHECKPOINT_NAME, weights_only=True)
    checkpoint["config"]["arch"]["args"]["model_type"] = str((folder / CONFIG_FOLDER).resolve())
    torch.save(checkpoint, copy)
    return copy


def _stack_labels(texts: Sequence[str], labels: Mapping[str, ArrayLike]) -> torch.Tensor:
    """Return the labels as float32, shape (texts, labels), after checking them."""
    columns = []
    for name, values in labels.items():
        column = np.asarray(values, dtype=np.float32)
        if column.shape != (len(texts),):
            raise ValueError(
                f"label {name!r}: expected one number per text ({len(texts)}), found shape "
                f"{column.shape}."
            )
        if np.nanmin(column) < 0 or np.nanmax(column) > 1:
            raise ValueError(f"label {name!r}: expected values in 0..1 or NaN, found others.")
        columns.append(column)
    return torch.from_numpy(np.stack(columns, axis=1))


def _train_wordpiece(
    texts: Sequence[str], *, vocab_size: int, n_positions: int
) -> BertTokenizerFast:
    """Train an uncased WordPiece tokenizer; Chinese characters are tokens of their own."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizerFast(
        vocab={word: index for index, (word, _) in enumerate(vocabulary)},
        do_lower_case=True,
        model_max_length=n_positions,
    )


def _run_steps(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizerFast,
    texts: Sequence[str],
    targets: torch.Tensor,
    *,
    steps: int,
    batch_texts: int,
    learning_rate: float,
    weight_decay: float,
    rng: random.Random,
) -> float:
    """Train in place; return the mean loss of the last tenth of the steps."""
    model.train()
    device = next(model.parameters()).device
    encoded = tokenizer(list(texts), truncation=True)["input_ids"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _scale_rate(step, steps))
    losses: list[float] = []
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch_texts:
            order.extend(rng.sample(range(len(texts)), len(texts)))
        rows, order = order[:batch_texts], order[batch_texts:]
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
        logits = model(**inputs.to(device)).logits
        loss = _measure_loss(logits, targets[rows].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        if (step + 1) % LOG_EVERY_STEPS == 0:
            logger.info("classifier: step %d of %d, loss %.4f", step + 1, steps, losses[-1])
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def _measure_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over the labels that are known (not NaN)."""
    known = ~torch.isnan(targets)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(targets), reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def _scale_rate(step: int, steps: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then linear down to nothing."""
    warm_up = max(1, math.ceil(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.0, (steps - step) / max(1, steps - warm_up))


def _save_checkpoint(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizerFast,
    classes: Sequence[str],
    out: Path,
) -> None:
    """Write the Detoxify checkpoint and the config folder."""
    config_folder = out / CONFIG_FOLDER
    config_folder.mkdir(parents=True, exist_ok=True)
    model = model.to("cpu").eval()
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.dtype = "float32"
    model.config.save_pretrained(config_folder)
    tokenizer.save_pretrained(config_folder)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = "".join(f"{word}\n" for word, _ in words)
    (config_folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    arguments = {
        "model_type": MODEL_TYPE,
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizerFast",
        "num_classes": len(classes),
    }
    checkpoint = {
        "config": {
            "arch": {"args": arguments},
            "dataset": {"args": {"classes": list(classes)}},
        },
        "state_dict": state,
    }
    torch.save(checkpoint, out / CHECKPOINT_NAME)
