"""Several scorers in one run: each judges, one decides, and they are compared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import EvaluationError
from eigenshift.settings import RefreshSettings

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A lexicon of the demo's made-up insults."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
    from demo_lexicon import CHINESE_INSULT_NOUNS, ENGLISH_INSULT_NOUNS

    path = tmp_path / "words.txt"
    path.write_text("\n".join([*ENGLISH_INSULT_NOUNS, *CHINESE_INSULT_NOUNS]), encoding="utf-8")
    return path


def find_redone(outcome: Any) -> set[str]:
    """Stages that did any work."""
    return {stage.name for stage in outcome.stages if stage.shards_cached < stage.shards}


def test_a_further_scorer_judges_the_same_continuations_and_is_compared(
    load_small: Load, finished_store: Path, tmp_path: Path, words: Path
) -> None:
    """Its scoring, the comparisons and what counts as an insult are new; the verdicts stay."""
    from flows.refresh import run_refresh

    shutil.copytree(finished_store, tmp_path / "store")
    before = run_refresh(load_small())
    lexicon = f"further_scorers=[{{kind: lexicon, words: {words}}}]"
    outcome = run_refresh(load_small(lexicon))
    assert find_redone(outcome) == {
        "score_further",
        "compare_arms",
        "compare_scorers",
        "measure_scorers",  # the lexicon's quality
        "measure_token_shifts",  # the words of a lexicon are insults there
    }
    assert outcome.metrics == before.metrics
    with open_audit(str(tmp_path / "store")) as session:
        run = f"run_id = '{outcome.run_id}'"
        rows = session.query(f"SELECT * FROM scorer_agreement WHERE {run}").to_pylist()
        assert {(row["scorer_a"], row["scorer_b"]) for row in rows} == {("detoxify", "lexicon")}
        assert {row["arm"] for row in rows} == {
            "base",
            "base_again",
            "eigenshift_fisher",
            "random_components",
            "token_suppression",
        }
        whole = next(r for r in rows if r["arm"] == "base" and r["language"] == "all")
        # the demo's classifier knows the same words, and insults of ordinary ones besides
        assert whole["cohens_kappa"] > 0.4
        (counts,) = session.query(
            "SELECT (SELECT count(*) FROM generations "
            f"WHERE {run} AND part = 'evaluation') AS decided, "
            f"(SELECT count(*) FROM further_scores WHERE {run}) AS further"
        ).to_pylist()
        assert counts["decided"] == counts["further"] == 5 * 20 * 4
        (metric,) = session.query(
            f"SELECT value FROM evaluations WHERE {run} AND arm = 'base' "
            "AND metric = 'toxicity_rate' AND slice = 'scorer=lexicon'"
        ).to_pylist()
        assert 0 < metric["value"] < 1


def test_a_linear_scorer_trained_on_the_runs_own_texts_decides(
    load_small: Load, finished_store: Path, tmp_path: Path
) -> None:
    """It scores, finds words by its own shares, and its content is in the fingerprints."""
    from eigenshift.settings import Role, TrainingSettings
    from eigenshift.toxicity.scorer_training import train_scorer
    from flows.refresh import run_refresh

    shutil.copytree(finished_store, tmp_path / "store")
    settings = load_small("sources.0.max_rows=1500", "sources.1.max_rows=1500")
    for name, ngrams in (("scorer", "both"), ("other", "characters")):
        trained = train_scorer(
            settings.sources_for(Role.labelled),
            settings.ingestion,
            TrainingSettings(ngrams=ngrams),
            tmp_path / name,
        )
        assert trained.quality.auroc > 0.9
    linear = f"scorer={{kind: linear, model: {tmp_path / 'scorer'}}}"
    outcome = run_refresh(load_small(linear))
    redone = find_redone(outcome)
    assert {"score_continuations", "locate_toxic_words", "collect_head_states"} <= redone
    assert not redone & {"ingest_source", "extract_activations"}
    assert find_redone(run_refresh(load_small(linear))) == set()
    kept = {path.name for path in (finished_store / "artifacts" / "toxic_positions").iterdir()}
    made = (tmp_path / "store" / "artifacts" / "toxic_positions").iterdir()
    files = [file for path in made if path.name not in kept for file in path.glob("*.parquet")]
    rows = pa.concat_tables([pq.read_table(path) for path in files]).to_pylist()
    assert len(rows) > 20
    assert min(row["fall"] for row in rows) >= 0.1
    assert all(row["attribution"] is not None for row in rows)
    shutil.rmtree(tmp_path / "scorer")
    shutil.copytree(tmp_path / "other", tmp_path / "scorer")
    assert "score_continuations" in find_redone(run_refresh(load_small(linear)))


def test_too_many_unscored_selection_continuations_stop_the_run(
    load_small: Load, finished_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before components are chosen from the few that could be scored."""
    from eigenshift.toxicity.scorers.interface import Score
    from eigenshift.toxicity.scorers.lexicon import LexiconScorer
    from flows.refresh import run_refresh

    shutil.copytree(finished_store, tmp_path / "store")
    words = tmp_path / "other.txt"
    words.write_text("zorb")
    monkeypatch.setattr(
        LexiconScorer, "score", lambda _, texts: [Score(None, "made to fail")] * len(texts)
    )
    with pytest.raises(EvaluationError, match="selection prompts"):
        run_refresh(
            load_small(
                f"scorer={{kind: lexicon, words: {words}}}", "components.positions=occlusion"
            )
        )
