"""A chat model through the whole line: its template is read everywhere and counted nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.model.encoding import REQUEST
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from flows.refresh import run_refresh
from tests.support import chat_templates

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

DEMO_MODEL = Path(__file__).parents[2] / "data" / "demo" / "model"
SYSTEM = "be kind"


@pytest.fixture
def chat_folder(tmp_path: Path) -> Path:
    """The demo's model with a chat template."""
    folder = tmp_path / "chat-model"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "chat_template.jinja").write_text(chat_templates.PLAIN, encoding="utf-8")
    return folder


def read_rows(store: Path, kind: str, name: str) -> list[list[dict[str, Any]]]:
    """The rows of a table of every artifact of a kind."""
    paths = sorted((store / "artifacts" / kind).rglob(f"*-{name}"))
    return [pq.read_table(path).to_pylist() for path in paths]


def test_a_chat_model_goes_through_the_line(
    load_small: Any, chat_folder: Path, tmp_path: Path
) -> None:
    """Prompts, positions, harmless texts, costs and the record, against transformers' template."""
    settings = load_small(f"model.id={chat_folder}", f"model.system_prompt={SYSTEM}")
    outcome = run_refresh(settings)
    store = tmp_path / "store"
    tokenizer = AutoTokenizer.from_pretrained(str(chat_folder))

    def render(message: str) -> list[int]:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    shards = read_rows(store, "continuations", tables.CONTINUATIONS.file)
    for row in (row for shard in shards for row in shard):
        assert row["prompt_token_ids"] == render(row["prompt"])
    context = render(REQUEST)
    labelled = [
        row
        for table in read_rows(store, "harmless_texts", tables.HARMLESS_TEXTS.file)
        for row in table
        if row["origin"] == "labelled"
    ]
    assert labelled
    for row in labelled:
        assert row["n_context"] == len(context)
        assert row["token_ids"][: len(context)] == context
    (run_id,) = list_run_ids(ArtifactStore(str(store)).store)
    record = read_run(ArtifactStore(str(store)).store, run_id)
    assert record.settings["model"]["system_prompt"] == SYSTEM
    assert outcome.status in ("promoted", "held")


def test_raw_text_of_the_same_model_is_another_run(load_small: Any, chat_folder: Path) -> None:
    """The template is part of what a stage was made from; labelled samples are not."""
    run_refresh(load_small(f"model.id={chat_folder}"))
    raw = run_refresh(load_small(f"model.id={chat_folder}", "model.chat=off"))
    made = {stage.name: stage.shards - stage.shards_cached for stage in raw.stages}
    assert made["ingest_source"] == made["choose_prompts"] == 0
    for stage in ("extract_activations", "generate_continuations", "measure_fluency"):
        assert made[stage] > 0, stage
