"""Every architecture through a refresh, a merged export and a reload: rows of a page in docs/.

`python -m tests.support.architecture_runs [NAME ...]` writes `docs/architectures.md`; a slow test
holds each row against a run. Tiny random models with the demo's tokenizer and data, without
Prefect's engine.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.architectures import ARCHITECTURES, MORE, OTHERS, WRAPPERS, make_random_model

if TYPE_CHECKING:
    from eigenshift.ledger.runs import RunRecord
    from eigenshift.model.loading import LanguageModel
    from eigenshift.settings import RefreshSettings

FIRST_MARK, LAST_MARK = "<!-- architectures -->", "<!-- end of architectures -->"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architectures.md"
ALL: dict[str, dict[str, Any]] = {
    **{item.config_class: item.values for item in ARCHITECTURES.values()},
    **MORE,
    **WRAPPERS,
    **OTHERS,
}
"""Class of configuration -> its values."""
SMALL = (
    "sources.0.max_rows=60",
    "sources.1.max_rows=60",
    "sources.3.max_rows=30",
    "activations.layers=[1]",
    "prompts.n_selection=20",
    "prompts.n_evaluation=10",
    "generation.n_samples=2",
    "generation.n_tokens=8",
    "components.states_from=labelled_text",
    "components.positions=lexicon",
    "components.min_toxic_positions=5",
    "harmless.n_continuations=40",
    "harmless.n_labelled=40",
    "harmless.n_evaluated=40",
    "patch.n_terms=4",
    "patch.n_deep_terms=12",
    "patch.n_rounds=1",
    "patch.max_metric_tokens=1000",
    "evaluation.n_bootstrap=100",
    "scorer_quality.n_texts=20",
    "gate.n_random_draws=0",
)
DEEP = "patch.intervention=eigenshift_fisher_deep"
RESIDUAL_ONLY = "activations.sites=[{site: residual, pooling: mean}]"
MLP_ONLY = "activations.sites=[{site: mlp_activation, pooling: max}]"
ODD_STREAMS = ("Gemma3nTextConfig",)
"""Whose residual stream has another shape than (text, position, unit)."""
HEAD_ONLY = ("Gemma3nTextConfig",)
"""Whose derivatives by the layers are not finite, so that the study of layers refuses them."""
HOW = {"past_key_values": "cache", "cache_params": "state", None: "whole sequences"}
N_CHECKED_TEXTS = 6
MIN_EQUAL = 0.95
"""Share of continuations of the exported model that are those of the run: an arm that changes the
head alone is run with unfolded weights beside the base, which differ by rounding."""


@dataclass(frozen=True)
class Outcome:
    """A row of the page.

    Attributes:
        configuration: Class of the configuration.
        model: Class of the model, or a dash.
        result: "works" or "refused".
        generates: By its cache, by its state, or over whole sequences again.
        activations: Which sites the detection side reads.
        patches: What a patch can be of.
        remark: Why it was refused.
    """

    configuration: str
    model: str
    result: str
    generates: str = "-"
    activations: str = "-"
    patches: str = "-"
    remark: str = ""

    def show(self) -> str:
        """As a row of Markdown."""
        cells = [str(getattr(self, field.name)) for field in fields(self)]
        cells[:2] = [f"`{cell}`" if cell != "-" else cell for cell in cells[:2]]
        return f"| {' | '.join(cells)} |"


def write_words(folder: Path) -> Path:
    """The demo's insults as a word list."""
    sys.path.insert(0, str(ROOT / "data"))
    from demo_lexicon import CHINESE_INSULT_NOUNS, ENGLISH_INSULT_NOUNS

    path = folder / "words.txt"
    path.write_text("\n".join([*ENGLISH_INSULT_NOUNS, *CHINESE_INSULT_NOUNS]), encoding="utf-8")
    return path


def try_architecture(name: str, folder: Path) -> Outcome:
    """Make a model, refresh, export, load the export back and hold it against the run.

    Args:
        name: Of `ALL`.
        folder: For everything that is made; the store in it is shared by all architectures.

    Raises:
        AssertionError: Something came out wrong.
    """
    from eigenshift.base.errors import ModelError
    from eigenshift.generation.branches import find_cache_name
    from eigenshift.model.layers import list_layers
    from eigenshift.model.loading import forget_models, load_model
    from eigenshift.model.taps import list_sites
    from eigenshift.model.writers import list_writers
    from eigenshift.settings import Site

    model_folder = folder / name
    model_class = _save_model(name, model_folder)
    words = folder / "words.txt" if (folder / "words.txt").exists() else write_words(folder)
    given = [
        f"store={folder / 'store'}",
        f"model.id={model_folder}",
        f"model.name={name}",
        f"components.lexicon={words}",
    ]
    forget_models()
    try:
        language_model = load_model(_load_settings(given).model, "cpu")
        blocks = enumerate(list_layers(language_model.model))
        has_mlp = all(Site.mlp_activation in list_sites(block, n) for n, block in blocks)
        sites = "residual, MLP" if has_mlp else "residual"
        given += [] if has_mlp else [RESIDUAL_ONLY]
        if name in ODD_STREAMS:
            sites = "MLP"
            given.append(MLP_ONLY)
        writers = [] if name in HEAD_ONLY else list_writers(language_model.model)
        given += [DEEP] if writers else []
        settings = _load_settings(given)
        record = _refresh(settings)
    except ModelError as error:
        reason = str(error).partition(": ")[2]
        return Outcome(name, model_class, "refused", remark=reason)
    _check_batches(language_model)
    _check_export(settings, record, folder)
    return Outcome(
        name,
        type(language_model.model).__name__,
        "works",
        HOW[find_cache_name(language_model)],
        sites,
        "head, layers" if writers else "head",
    )


def _save_model(name: str, folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "demo" / "model")
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    values = dict(ALL[name])
    if "text_config" in values:
        values["text_config"] = values["text_config"] | ids
    elif name != "ViTConfig":
        values |= ids
    if "vocab_size_per_layer_input" in values:
        values["vocab_size_per_layer_input"] = len(tokenizer)
    model = make_random_model(name, values)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return type(model).__name__


def _load_settings(given: list[str]) -> RefreshSettings:
    from eigenshift.settings import load_preset

    return load_preset("demo", [*SMALL, *given])


def _refresh(settings: RefreshSettings) -> RunRecord:
    from eigenshift.ledger.runs import read_run
    from eigenshift.store.storage import Store
    from tests.support.plain_refresh import refresh_plainly

    outcome = refresh_plainly(settings)
    return read_run(Store(settings.store), outcome.run_id)


def _check_batches(language_model: LanguageModel) -> None:
    """What enters the head does not depend on the texts beside a text."""
    import torch

    from eigenshift.model.forward import iterate_head_states

    texts = [
        [(place * 7 + row) % language_model.vocab for place in range(3 + 4 * row)]
        for row in range(N_CHECKED_TEXTS)
    ]
    together = dict(iterate_head_states(language_model, texts, 10_000))
    for place, text in enumerate(texts):
        ((_, alone),) = iterate_head_states(language_model, [text], 10_000)
        torch.testing.assert_close(together[place], alone, rtol=1e-3, atol=1e-4)


def _check_export(settings: RefreshSettings, record: RunRecord, folder: Path) -> None:
    """Export, load back, generate: the run's continuations."""
    from eigenshift.exporting.exports import export_patch
    from eigenshift.model.loading import forget_models, load_model
    from eigenshift.patches.patching import open_patch
    from eigenshift.store.artifacts import ArtifactStore

    out = folder / f"{settings.model.name}-out"
    export_patch(settings.store, record.run_id, "merged", out)  # runs it beside the base
    artifacts = ArtifactStore(settings.store)
    patch = open_patch(artifacts.open(record.find_artifact("patch", record.judged)))
    _check_tensors(folder / str(settings.model.name), out, len(patch.description.tensors))
    forget_models()
    exported = load_model(settings.model.model_copy(update={"id": str(out)}), "cpu")
    assert _measure_equal(artifacts, record, exported, settings, folder) >= MIN_EQUAL
    forget_models()


def _check_tensors(base: Path, out: Path, n_changed: int) -> None:
    """All tensors that the patch leaves alone keep their bytes, those of a tower too."""
    import torch
    from safetensors.torch import load_file

    before, after = (load_file(path / "model.safetensors") for path in (base, out))
    assert before.keys() <= after.keys()
    differing = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(differing) + len(after.keys() - before.keys()) == n_changed
    assert not any("vision" in key or "visual" in key for key in differing)


def _measure_equal(
    artifacts: Any,
    record: RunRecord,
    exported: LanguageModel,
    settings: RefreshSettings,
    folder: Path,
) -> float:
    """Share of the judged arm's continuations that the exported model gives by itself."""
    import pyarrow.parquet as pq

    from eigenshift.generation.continuations import LoadedArm, generate_continuations
    from eigenshift.stages import tables
    from eigenshift.store.manifests import ArtifactReference
    from eigenshift.store.workspace import Workspace

    patch = record.find_artifact("patch", record.judged)
    made = [
        artifacts.open(ArtifactReference(kind=use.kind, fingerprint=use.fingerprint))
        for use in record.artifacts
        if use.kind == "continuations"
    ]
    (judged,) = (
        found
        for found in made
        if patch.fingerprint in [source.fingerprint for source in found.manifest.inputs]
    )
    expected = judged.read_table(tables.CONTINUATIONS.file)
    prompts = artifacts.open(record.find_artifact("prompts")).read_tables(
        tables.EVALUATION_PROMPTS.prefix
    )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        workspace = Workspace(Path(place))
        (_,) = generate_continuations(
            exported,
            prompts,
            {"exported": LoadedArm(None)},
            settings.generation.sampling,
            sequences_per_batch=64,
            workspaces={"exported": workspace},
        )
        found = pq.read_table(workspace.path(tables.CONTINUATIONS.file))
    assert found.num_rows == expected.num_rows
    pairs = zip(found["token_ids"].to_pylist(), expected["token_ids"].to_pylist(), strict=True)
    return sum(one == other for one, other in pairs) / found.num_rows


def write_rows(found: Mapping[str, str]) -> None:
    """Write rows into the page, in place of those of the same configurations."""
    known = read_page() | found
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST_MARK)
    after = rest.partition(LAST_MARK)[2]
    names = [field.name for field in fields(Outcome)]
    head = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    rows = [known[name] for name in ALL if name in known]
    table = "\n".join([*head, *rows])
    PAGE.write_text(f"{before}{FIRST_MARK}\n\n{table}\n\n{LAST_MARK}{after}", encoding="utf-8")


def read_page() -> dict[str, str]:
    """Rows of the page by configuration."""
    text = PAGE.read_text(encoding="utf-8").partition(FIRST_MARK)[2].partition(LAST_MARK)[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {row.split("`")[1]: row for row in rows}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as made:
        for each in sys.argv[1:] or ALL:
            write_rows({each: try_architecture(each, Path(made)).show()})
