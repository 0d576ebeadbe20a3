"""Names and orders of a Llama's weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from eigenshift.base.errors import ModelError
from eigenshift.fetching.gguf_files import open_gguf
from eigenshift.fetching.llama_layout import (
    describe_config,
    order_rotary_rows,
    read_weights,
)
from tests.support.packaged_models import interleave, make_llama, train_tokenizer, write_gguf


@pytest.mark.parametrize(("n_heads", "width"), [(1, 4), (3, 8), (9, 64)])
def test_rotary_rows_go_back_to_where_they_were(n_heads: int, width: int) -> None:
    """Against an order written out pair by pair; every row keeps its values."""
    rows = np.arange(n_heads * width * 2, dtype=np.float32).reshape(-1, 2)
    np.testing.assert_array_equal(order_rotary_rows(interleave(rows, n_heads), n_heads), rows)


def test_a_pair_is_split_into_two_halves() -> None:
    """Small enough to see: rows 0 and 1 are the coordinates of pair 0."""
    rows = np.array([[0.0], [10.0], [1.0], [11.0]], np.float32)
    assert order_rotary_rows(rows, 1).ravel().tolist() == [0.0, 1.0, 10.0, 11.0]


def test_the_configuration_is_the_models(tmp_path: Path, neutral_texts: list[str]) -> None:
    """Sizes, rotary base, tokens and tying; the epsilon as it was meant, not as float32 has it."""
    tokenizer = train_tokenizer(neutral_texts)
    reference = make_llama(tokenizer.get_vocab_size())
    path = write_gguf(tmp_path / "f.gguf", reference, tokenizer)
    config = describe_config(open_gguf(path, "made up"), is_tied=True)
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"):
        assert config[key] == getattr(reference.config, key), key
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5_000.0}
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 0)
    assert config["tie_word_embeddings"] is True


def test_another_architecture_is_refused(tmp_path: Path, neutral_texts: list[str]) -> None:
    """Before any weight is read."""
    tokenizer = train_tokenizer(neutral_texts)
    reference = make_llama(tokenizer.get_vocab_size())
    path = write_gguf(tmp_path / "f.gguf", reference, tokenizer, architecture="mamba")
    with pytest.raises(ModelError, match="architecture 'llama', found 'mamba'"):
        read_weights(open_gguf(path, "made up"))


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    """A weight that is left out would go unnoticed until the text is nonsense."""
    writer = gguf.GGUFWriter(tmp_path / "f.gguf", "llama")
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_tensor("blk.0.attn_q.bias", np.zeros((4, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.bias"):
        read_weights(open_gguf(tmp_path / "f.gguf", "made up"))
