"""Which scorer settings name: a digest of its files, taken without opening it.

What a kind needs for that is imported where it is asked: a run with nothing to do asks for one
digest and should not wait for torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from eigenshift.base.errors import ScorerError
from eigenshift.model.files import digest_unchanged
from eigenshift.settings import PlainScorerSettings, ScorerKind, ScorerSettings
from eigenshift.store.source_files import digest_file, fetch_path, has_protocol


def identify_scorer(settings: ScorerSettings) -> str:
    """Digest of what decides the scores: the kind, the verdict, and the files' content.

    Raises:
        ScorerError: A file is missing.
    """
    digest = hashlib.sha256()
    for part in _list_parts(settings):
        digest.update(f"{part}\n".encode())
    for scorer in settings.for_languages:
        for part in (scorer.language, *_list_parts(scorer)):
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()


def _list_parts(settings: PlainScorerSettings) -> Iterator[str]:
    yield settings.kind.value
    if settings.kind is ScorerKind.lexicon:
        yield _digest(settings.words or "")
        return
    if settings.kind is ScorerKind.linear:
        from eigenshift.toxicity.scorers.linear import identify_linear

        yield identify_linear(settings)
        return
    if settings.kind is ScorerKind.judge:
        from eigenshift.toxicity.scorers.judge import describe_judge

        yield from describe_judge(settings)
        return
    yield settings.effective_label
    yield settings.verdict.value
    if settings.kind is ScorerKind.classifier:
        from eigenshift.toxicity.scorers.pretrained import identify_classifier

        yield identify_classifier(settings).digest
        return
    yield settings.model_type
    if settings.checkpoint is not None:
        yield _digest(settings.checkpoint)
    if settings.config_folder is not None:
        folder = fetch_path(require_existing(settings.config_folder))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"{path.relative_to(folder)}:{digest_unchanged(path)}"


def _digest(uri: str) -> str:
    """Digest of a file; of a local one only once as long as it is unchanged."""
    require_existing(uri)
    return digest_file(uri) if has_protocol(uri) else digest_unchanged(Path(uri))


def require_existing(uri: str) -> str:
    """Return the location if there is something, or it is remote.

    Raises:
        ScorerError: There is nothing.
    """
    if not has_protocol(uri) and not Path(uri).exists():
        raise ScorerError(
            f"{uri}: expected a file or folder, found nothing. Check the paths under scorer "
            "(checkpoint, config_folder, words)."
        )
    return uri
