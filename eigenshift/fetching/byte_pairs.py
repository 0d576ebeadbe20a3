"""The tokenizer of a GGUF file, rebuilt from its own tokens, merges and chat template.

Byte-level BPE as GPT-2 has it; what splits a text before that is the file's `pre` field, of which
those in `SPLITS_DIGITS` are known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from eigenshift.base.errors import ModelError
from eigenshift.fetching.gguf_files import GgufFile

KIND = "gpt2"
SPLITS_DIGITS: Mapping[str, bool] = {"smollm": True, "gpt-2": False}
"""Name of the splitting -> whether every digit is a token of its own."""
CONTROL = 3
"""Type of tokens that are no text: beginnings, ends, roles."""
SPECIAL_FIELDS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
CHAT_TEMPLATE_NAME = "chat_template.jinja"


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Rebuild the tokenizer.

    Raises:
        ModelError: It is of another kind.
    """
    kind, splitting = (file.read_field(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != KIND or splitting not in SPLITS_DIGITS:
        known = ", ".join(sorted(SPLITS_DIGITS))
        raise ModelError(
            f"{file.place}: expected a byte-level tokenizer (model {KIND!r}, pre one of {known}), "
            f"found model {kind!r}, pre {splitting!r}. Choose another model."
        )
    tokens = file.read_field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.read_field("tokenizer.ggml.merges")]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] * SPLITS_DIGITS[splitting]
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, by_words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    types = file.read_field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL
        ]
    )
    return tokenizer


def describe_tokenizer(file: GgufFile) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Raises:
        ModelError: A field is missing.
    """
    tokens = file.read_field("tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.read_field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        **{
            name: tokens[file.read_field(f"tokenizer.ggml.{key}_token_id")]
            for name, key in SPECIAL_FIELDS.items()
        },
    }


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer's own file and the chat template.

    Raises:
        ModelError: The tokenizer is of another kind.
    """
    read_tokenizer(file).save(str(folder / "tokenizer.json"))
    if file.has_field("tokenizer.chat_template"):
        template = file.read_field("tokenizer.chat_template")
        (folder / CHAT_TEMPLATE_NAME).write_text(template, encoding="utf-8")
