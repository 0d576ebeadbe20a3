"""Train a small GPT-2-shaped language model on any corpus, from nothing, on a CPU.

Reads texts handed over by the caller; writes a Hugging Face model folder: `config.json`,
`generation_config.json`, `model.safetensors` (float16 on disk, loads as float32) and a byte-level
BPE tokenizer. The output head is tied to the input embedding, as in GPT-2.

Tokens: `<|endoftext|>` begins and ends every text, `<|pad|>` pads. As with GPT-2, the tokenizer
does NOT put `<|endoftext|>` in front by itself (`add_bos_token` is false): whoever measures
perplexity should prepend it, because in training the first word of a text always followed it.
The demo corpus is made elsewhere (`demo_grammar.py`); nothing here knows about it.
"""

import json
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
CHINESE_PARTICLES = "的了是个在有和把就才会都也很这那哪谁你我他她它们不没吗"
P_START_AT_TEXT = 0.75  # share of training windows that begin with END_OF_TEXT
WARM_UP_SHARE = 0.05  # of all steps
LOG_EVERY_STEPS = 100

logger = logging.getLogger(__name__)


def train_language_model(
    texts: Sequence[str],
    out: Path,
    *,
    vocab_size: int = 2048,
    n_layer: int = 3,
    n_head: int = 4,
    n_embd: int = 128,
    n_positions: int = 128,
    steps: int = 1500,
    batch_tokens: int = 4096,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    dropout: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    tokenizer_texts: Sequence[str] | None = None,
    unspaced_words: Sequence[str] = (),
) -> dict[str, float]:
    """Train tokenizer and model on `texts` and save both to `out`.

    Args:
        texts: Training documents; empty ones are skipped.
        out: Folder to write; made if missing.
        vocab_size: Upper bound on the tokenizer's entries; small corpora give fewer.
        n_layer: Number of transformer blocks.
        n_head: Attention heads per block; divides `n_embd`.
        n_embd: Width of the hidden state.
        n_positions: Longest sequence in tokens, and the length of training windows.
        steps: Optimiser steps.
        batch_tokens: Tokens per step, rounded down to whole windows (at least one).
        learning_rate: Peak of a warm-up and cosine schedule.
        weight_decay: AdamW decay of the matrices, embeddings included.
        dropout: Probability, everywhere GPT-2 has dropout.
        seed: Fixes the initial weights and the order of the data.
        device: Torch device to train on.
        tokenizer_texts: Texts for the tokenizer, by default `texts`; give others where a word that
            is rare in `texts` should still be one token.
        unspaced_words: Words, of languages written without spaces, that are never glued to their
            neighbours; a common one is then a single token.

    Returns:
        `n_parameters`, `n_training_tokens`, `vocab_size`, `final_loss` (nats per token, mean of
        the last steps), `elapsed_seconds`.
    """
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise ValueError("language model corpus: expected at least one non-empty text, found none.")
    started = time.monotonic()
    tokenizer = train_tokenizer(
        tokenizer_texts or kept,
        vocab_size=vocab_size,
        n_positions=n_positions,
        unspaced_words=unspaced_words,
    )
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        n_positions=n_positions,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = GPT2LMHeadModel(config).to(device)
    stream, starts = _encode_stream(kept, tokenizer)
    final_loss = _run_steps(
        model,
        stream,
        starts,
        steps=steps,
        n_windows=max(1, batch_tokens // n_positions),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        rng=random.Random(seed),
    )
    _save_model(model, tokenizer, out)
    return {
        "n_parameters": float(sum(p.numel() for p in model.parameters())),
        "n_training_tokens": float(len(stream)),
        "vocab_size": float(len(tokenizer)),
        "final_loss": final_loss,
        "elapsed_seconds": time.monotonic() - started,
    }


def train_tokenizer(
    texts: Sequence[str],
    *,
    vocab_size: int,
    n_positions: int,
    unspaced_words: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`.

    Words are split as in GPT-2, and the commonest Chinese particles and pronouns stand alone: left
    to itself BPE glues a word to the particle before it (of insults in the demo, every third), and
    no token would begin where the word begins. `unspaced_words` stand alone as well.
    """
    alone = "|".join([*sorted(unspaced_words, key=len, reverse=True), f"[{CHINESE_PARTICLES}]"])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(alone), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=n_positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def measure_perplexity(folder: Path, texts: Sequence[str], n_texts_at_once: int = 32) -> float:
    """Corpus perplexity of a saved model: exp(total nats / total tokens), `<|endoftext|>` first.

    The leading `<|endoftext|>` is context only; every token of the text is predicted. Texts longer
    than the model's window are cut.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="right")
    nats, n_tokens = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(texts), n_texts_at_once):
            batch = [END_OF_TEXT + text for text in texts[first : first + n_texts_at_once]]
            inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=True)
            logits = model(inputs.input_ids, attention_mask=inputs.attention_mask).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(), inputs.input_ids[:, 1:], reduction="none"
            )
            mask = inputs.attention_mask[:, 1:]
            nats += float((losses * mask).sum())
            n_tokens += int(mask.sum())
    return math.exp(nats / n_tokens)


def _encode_stream(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, list[int]]:
    """Return all texts as one stream of ids, shape (tokens,), and where each text begins."""
    ids: list[int] = []
    starts: list[int] = []
    for encoded in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        starts.append(len(ids))
        ids.append(tokenizer.bos_token_id)
        ids.extend(encoded)
    ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids, dtype=torch.long), starts


def _run_steps(
    model: GPT2LMHeadModel,
    stream: torch.Tensor,
    starts: Sequence[int],
    *,
    steps: int,
    n_windows: int,
    learning_rate: float,
    weight_decay: float,
    rng: random.Random,
) -> float:
    """Train in place; return the mean loss of the last tenth of the steps, nats per token."""
    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _scale_rate(step, steps))
    device = next(model.parameters()).device
    n_positions = min(model.config.n_positions, len(stream))
    losses: list[float] = []
    for step in range(steps):
        windows = _draw_windows(stream, starts, n_windows, n_positions, rng).to(device)
        loss = model(input_ids=windows, labels=windows).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        if (step + 1) % LOG_EVERY_STEPS == 0:
            logger.info("language model: step %d of %d, loss %.3f", step + 1, steps, losses[-1])
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def _scale_rate(step: int, steps: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then cosine down to a tenth."""
    warm_up = max(1, int(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _draw_windows(
    stream: torch.Tensor,
    starts: Sequence[int],
    n_windows: int,
    n_positions: int,
    rng: random.Random,
) -> torch.Tensor:
    """Draw training windows, shape (n_windows, n_positions), most of them at a text's beginning."""
    latest = len(stream) - n_positions
    windows = []
    for _ in range(n_windows):
        at_text = rng.random() < P_START_AT_TEXT
        first = min(latest, rng.choice(starts) if at_text else rng.randint(0, latest))
        windows.append(stream[first : first + n_positions])
    return torch.stack(windows)


def _save_model(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save weights as float16, but let them load as float32: CPUs are slow in half precision.

    The tokenizer's class is written by the name that every transformers release knows.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.to("cpu").eval().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    _edit_json(out / "config.json", dtype="float32")
    _edit_json(
        out / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        add_bos_token=False,
    )


def _edit_json(path: Path, **changes: object) -> None:
    """Set top-level keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
