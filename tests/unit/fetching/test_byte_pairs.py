"""A tokenizer rebuilt from a GGUF file is the one the file was written from."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.base.errors import ModelError
from eigenshift.fetching.byte_pairs import describe_tokenizer, read_tokenizer
from eigenshift.fetching.gguf_files import GgufFile, open_gguf
from tests.support.packaged_models import (
    SPECIAL,
    MadeUpPackage,
    make_llama,
    train_tokenizer,
    write_gguf,
)

TEXTS = [
    "The green garden was open.",
    "  two spaces,\ttab\nand a line  ",
    "it's 2,025 in 7 rooms",
    "茶杯很安静。",
    "é ñ 🙂 \x00",
    "<|start|>The garden<|end|>",
    "",
]


@pytest.fixture
def file(tmp_path: Path, package: MadeUpPackage) -> GgufFile:
    """The made-up model's file."""
    reference = make_llama(package.tokenizer.get_vocab_size())
    return open_gguf(write_gguf(tmp_path / "f.gguf", reference, package.tokenizer), "made up")


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_has_the_same_tokens(file: GgufFile, package: MadeUpPackage, text: str) -> None:
    """Spaces, digits, other scripts and special tokens included, and back again."""
    rebuilt = read_tokenizer(file)
    ids = rebuilt.encode(text).ids
    assert ids == package.tokenizer.encode(text).ids
    assert rebuilt.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_no_text(file: GgufFile) -> None:
    """They are left out where only text is asked for, and named in the configuration."""
    rebuilt = read_tokenizer(file)
    assert rebuilt.decode(rebuilt.encode("<|start|>The garden<|end|>").ids) == "The garden"
    config = describe_tokenizer(file)
    assert (config["eos_token"], config["bos_token"]) == SPECIAL
    assert config["model_max_length"] == 128


def test_a_splitting_that_is_not_known_is_refused(tmp_path: Path, neutral_texts: list[str]) -> None:
    """A wrong guess would give other tokens without a word."""
    tokenizer = train_tokenizer(neutral_texts)
    reference = make_llama(tokenizer.get_vocab_size())
    path = write_gguf(tmp_path / "f.gguf", reference, tokenizer, pre="qwen2")
    with pytest.raises(ModelError, match="pre 'qwen2'"):
        read_tokenizer(open_gguf(path, "made up"))
