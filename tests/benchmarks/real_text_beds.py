"""Test beds on real text: two small language models, a scorer, and files that settings can name.

Reads the public data sets of data/README.md (Jigsaw, toxic spans, Davidson, ParaDetox, WikiText-2,
WikiSplit, RealToxicityPrompts, a list of profane words) from a folder given at run time; writes
models, scorer and sources into a work folder outside the repository. Offensive text is read and
never shown. The models are weak (minutes of training on a CPU): they rank methods, no more.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import pickle
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from eigenshift.model.layers import fuse_activations

VOCAB, CONTEXT, WINDOWS, HIDDEN = 3_000, 48, 16, 192
MAX_CHARACTERS = 500
MODELS = ("gpt2", "llama")
csv.field_size_limit(1 << 30)


def list_labelled(data: Path) -> list[tuple[str, int]]:
    """Jigsaw comments with labels (1 toxic), each text once."""
    rows = [
        (row["comment_text"], row["toxic"])
        for name in ("train.csv", "train_head.csv")
        for row in _read_csv(data / "jigsaw" / name)
    ]
    with (data / "jigsaw" / "test_text_toxic.csv").open(encoding="utf-8", newline="") as file:
        rows += [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2]
    found: dict[bytes, tuple[str, int]] = {}
    for text, label in rows:
        cleaned = _clean(text)
        key = hashlib.sha256(re.sub(r"\W", "", cleaned.lower()).encode()).digest()
        if len(cleaned) > 3 and label in ("0", "1"):
            found.setdefault(key, (cleaned, int(label)))
    return list(found.values())


def is_held_out(text: str) -> bool:
    """Whether a comment is kept from the language models and the scorer: one in five."""
    return hashlib.sha256(f"hold:{text}".encode()).digest()[0] % 5 == 0


def list_training_texts(data: Path) -> list[str]:
    """What the language models learn from."""
    other = data / "other"
    texts = [text for text, _ in list_labelled(data) if not is_held_out(text)]
    texts += [_clean(row["text"]) for row in _read_csv(other / "toxic_spans" / "tsd_train.csv")]
    texts += [_clean(row["tweet"]) for row in _read_csv(other / "davidson" / "labeled_data.csv")]
    lines = (other / "paradetox" / "paradetox.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts += [_clean(part) for line in lines for part in line.split("\t")[:2] if part]
    texts += _read_wikitext(data / "wiki" / "wikitext-2" / "wiki.train.tokens.gz")
    texts += _read_wiki_split(data)[:2500]
    random.Random(0).shuffle(texts)
    return [text[:MAX_CHARACTERS] for text in texts[:50_000]]


def write_sources(data: Path, work: Path) -> None:
    """Labelled comments and neutral text that no model saw, and prompts above 0.5."""
    work.mkdir(parents=True, exist_ok=True)
    held = [(text[:300], label) for text, label in list_labelled(data) if is_held_out(text)]
    random.Random(3).shuffle(held)
    with (work / "comments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", "toxic"])
        writer.writerows([place, text, label] for place, (text, label) in enumerate(held[:4000]))
    neutral = [text for text in _read_wiki_split(data)[2500:] if len(text) > 60]
    neutral += [
        text[:MAX_CHARACTERS]
        for text in _read_wikitext(data / "wiki" / "wikitext-2" / "wiki.valid.tokens")
    ]
    random.Random(3).shuffle(neutral)
    with (work / "neutral.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([text] for text in neutral[:1500])
    prompts: dict[str, dict[str, Any]] = {}
    for name in ("prompts_quark_val.jsonl", "prompts_decodingtrust_toxic.jsonl"):
        for line in (data / "rtp" / name).read_text(encoding="utf-8").splitlines():
            prompt = json.loads(line)["prompt"]
            if (prompt.get("toxicity") or 0.0) > 0.5:
                prompts.setdefault(prompt["text"].strip(), prompt)
    lines = [json.dumps({"prompt": {**found, "text": text}}) for text, found in prompts.items()]
    (work / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = {
        row["text"].strip().lower() for row in _read_csv(data / "lexicons/surge_profanity_en.csv")
    }
    words |= set(
        (data / "lexicons" / "ldnoobw_en.txt").read_text(encoding="utf-8").lower().split("\n")
    )
    kept = sorted(word for word in words if len(word.strip()) >= 3)
    (work / "profane_words.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")


def train_scorer(data: Path, work: Path) -> dict[str, Any]:
    """TF-IDF and logistic regression on comments, judged on held-out ones."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    rows = [(text[:400], label, is_held_out(text)) for text, label in list_labelled(data)]
    fitted, held = ([row for row in rows if row[2] is flag] for flag in (False, True))
    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=3,
        max_features=60_000,
        sublinear_tf=True,
        token_pattern=r"(?u)[\w']+",
    )
    classifier = make_pipeline(vectoriser, LogisticRegression(C=6.0, max_iter=40, tol=1e-3))
    classifier.fit([row[0] for row in fitted], [row[1] for row in fitted])
    found = classifier.predict_proba([row[0] for row in held])[:, 1]
    auroc = roc_auc_score([row[1] for row in held], found)
    (work / "scorer.pkl").write_bytes(pickle.dumps(classifier))
    return {"scorer_auroc": round(float(auroc), 4), "n_held_out": len(held)}


def train_models(data: Path, work: Path, seconds: float) -> dict[str, float]:
    """Both models side by side, one thread each, for so long; returns the last losses."""
    texts = list_training_texts(data)
    tokenizer = train_tokenizer(texts[:15_000])
    stream, starts = _encode(tokenizer, texts)
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_head=4, n_embd=HIDDEN, n_positions=128, **no_dropout, **special)
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            **special,
        )
    )
    losses: dict[str, float] = {}

    def train(name: str, model: Any, seed: int) -> None:
        losses[name] = _train(model, stream, starts, seconds, seed)
        model.save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)

    torch.set_num_threads(1)
    arguments = zip(MODELS, (gpt2, llama), (1, 2), strict=True)
    threads = [threading.Thread(target=train, args=found) for found in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return losses


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end
    )


def _train(
    model: Any, stream: torch.Tensor, starts: Sequence[int], seconds: float, seed: int
) -> float:
    """The schedule follows the clock, since the machine may be shared."""
    fuse_activations(model)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
    rng, began, losses = random.Random(seed), time.monotonic(), [0.0]
    while (passed := (time.monotonic() - began) / seconds) < 1.0:
        warm = min(1.0, len(losses) / 40)
        rate = 2.5e-3 * warm * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        last = len(stream) - CONTEXT
        firsts = [
            min(rng.choice(starts) if rng.random() < 0.75 else rng.randint(0, last), last)
            for _ in range(WINDOWS)
        ]
        tokens = torch.stack([stream[first : first + CONTEXT] for first in firsts])
        logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    recent = losses[-50:]
    return sum(recent) / len(recent)


def _encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> tuple[torch.Tensor, list[int]]:
    ids: list[int] = []
    starts: list[int] = []
    for first in range(0, len(texts), 2000):
        encoded = tokenizer(texts[first : first + 2000], add_special_tokens=False)["input_ids"]
        for tokens in encoded:
            starts.append(len(ids))
            ids += [tokenizer.bos_token_id, *tokens]
    return torch.tensor(ids), starts


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _read_wikitext(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    return [_detokenise(line) for line in lines if len(line) > 120 and not line.startswith("=")]


def _read_wiki_split(data: Path) -> list[str]:
    lines = (data / "wiki" / "wiki-split_validation.tsv").read_text(encoding="utf-8").splitlines()
    return [_detokenise(line.split("\t")[0].replace('"', "")) for line in lines if line.strip()]


def _detokenise(line: str) -> str:
    for marked, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), ("<unk>", "")):
        line = line.replace(marked, plain)
    line = re.sub(r" ([.,;:!?)\]'%])", r"\1", line)
    return _clean(re.sub(r"([(\[]) ", r"\1", line).replace(" n't", "n't"))


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
