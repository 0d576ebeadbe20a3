"""Whether all that settings name is there, told before anything is started.

Looks at the files of sources, model, scorers, lists and tasks: that they are there, are what is
read, and that a small file holds a row. Digests nothing, loads no model and no torch (a run with
nothing to do looks here, too), and asks no hub for what it has. Runs call it first; `doctor`
(`diagnosis.py`) says the same of each thing, and looks longer. What is read of a file, and what an
unusable row is, belongs to `datasets/`.
"""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from eigenshift.base.errors import (
    INPUT_ERRORS,
    DatasetError,
    EigenShiftError,
    ModelError,
    ScorerError,
    SettingsError,
)
from eigenshift.benchmarks.tasks import require_tasks
from eigenshift.datasets.reading import list_source_files, require_first_rows
from eigenshift.model.files import require_model_files
from eigenshift.settings import (
    ModelSettings,
    PlainScorerSettings,
    RefreshSettings,
    Role,
    ScorerKind,
    SourceFormat,
    SourceSettings,
)
from eigenshift.store.source_files import SourceFile, has_protocol, is_place, list_files
from eigenshift.store.storage import Store
from eigenshift.toxicity.functional_cases import read_cases
from eigenshift.toxicity.scorers.identity import require_existing
from eigenshift.toxicity.word_lists import read_words

ASKING_SECONDS = 10.0
OK = 200
GONE = (404, 410)
PUBLIC_ORIGINS = {
    SourceFormat.jigsaw: (
        "https://www.kaggle.com/competitions/jigsaw-toxic-comment-classification-challenge"
    ),
    SourceFormat.toxicn: "https://github.com/DUT-lujunyu/ToxiCN",
    SourceFormat.real_toxicity_prompts: (
        "https://huggingface.co/datasets/allenai/real-toxicity-prompts"
    ),
    SourceFormat.sentences: "https://huggingface.co/datasets/Salesforce/wikitext",
    SourceFormat.paragraphs: "https://huggingface.co/datasets/Salesforce/wikitext",
}
"""Where the files that shipped presets name are from; their licences are in data/README.md."""

Check = Callable[[], object]


def require_inputs(settings: RefreshSettings, *, only_detects: bool = False) -> None:
    """Stop before a run does any work if something it reads is not there; all that lacks is told.

    Args:
        settings: Of the run.
        only_detects: Whether the run generates and judges nothing (`detect`).

    Raises:
        EigenShiftError: One thing lacks: its own error.
        SettingsError: Several do.
    """
    missing: list[EigenShiftError] = []
    for check in _list_checks(settings, only_detects=only_detects):
        try:
            check()
        except EigenShiftError as error:
            if str(error) not in map(str, missing):
                missing.append(error)
    if len(missing) == 1:
        raise missing[0]
    if missing:
        lines = "\n".join(f"- {error}" for error in missing)
        message = f"{len(missing)} things that the run reads are not as expected:\n{lines}"
        if any(isinstance(error, INPUT_ERRORS) for error in missing):
            raise SettingsError(message)
        raise type(missing[0])(message)


def _list_checks(settings: RefreshSettings, *, only_detects: bool) -> Iterator[Check]:
    for source in settings.sources:
        if not only_detects or source.effective_role is Role.labelled:
            yield lambda source=source: require_source(source)  # type: ignore[misc]
    if settings.execution.cluster_address is not None:
        return  # what follows is read on the cluster's machines, which may have other disks
    yield lambda: require_model_files(settings.model)
    if only_detects:
        return
    for scorer in (settings.scorer, *settings.further_scorers):
        for judge in (scorer, *scorer.for_languages):
            yield lambda judge=judge: require_scorer(judge)  # type: ignore[misc]
    if (cases := settings.scorer_quality.functional_cases) is not None:
        yield lambda: read_cases(cases)
    if (lexicon := settings.components.lexicon) is not None:
        yield lambda: read_words(lexicon, "components.lexicon")
    yield lambda: require_tasks(settings.benchmark.tasks)


def require_writable(url: str) -> None:
    """Stop if a store cannot be opened, written or read back; a new one's folder is not made yet.

    Raises:
        SettingsError: It cannot.
    """
    store = Store(url)
    folder = store.local_path(".") if store.is_local else None
    if folder is None or folder.is_dir():
        store.check_writable()
        return
    parent = next(path for path in folder.parents if path.exists())
    try:
        # Rights alone do not tell: of /proc, of a disk that is mounted read-only.
        Path(tempfile.mkdtemp(prefix=".eigenshift-probe-", dir=parent)).rmdir()
    except OSError as error:
        raise SettingsError(
            f"store {store.root}: expected a folder that can be made, found {parent}, where none "
            f"can be ({error.strerror or type(error).__name__}). Choose another --store, or make "
            "that folder writable."
        ) from error


def require_source(source: SourceSettings) -> list[SourceFile]:
    """The files of a source, if all are there and small ones hold a row; of a hub's none.

    Raises:
        DatasetError: They are not, with where a public data set is from.
    """
    if is_on_hub(source):
        return []
    try:
        files = list_source_files(source)
    except DatasetError as error:
        origin = PUBLIC_ORIGINS.get(source.format)
        hint = f" The public data set is at {origin} (more in data/README.md)." if origin else ""
        raise DatasetError(f"{error}{hint}") from error
    require_first_rows(source, files)
    return files


def is_on_hub(source: SourceSettings) -> bool:
    """Whether a source is a hub's data set by its id."""
    return source.format is SourceFormat.huggingface and not is_place(source.uri)


def require_scorer(settings: PlainScorerSettings) -> None:
    """Stop if a file of a scorer is not there, or cannot be downloaded; nothing is loaded.

    Raises:
        ScorerError: It is not.
        SettingsError: Its file of words is not, or cannot be read.
    """
    if settings.kind is ScorerKind.detoxify and settings.checkpoint is None:
        _require_release(settings)
    if settings.kind is ScorerKind.linear:
        if has_protocol(settings.model or ""):
            _require_file(settings.model or "", "scorer.model")
        else:
            from eigenshift.toxicity.scorers.linear import identify_linear  # scipy takes a second

            identify_linear(settings)
    elif settings.model is not None:
        _require_model(settings)
    if settings.words is not None:
        read_words(settings.words, "scorer.words")
    if settings.checkpoint is not None:
        _require_file(settings.checkpoint, "scorer.checkpoint")
    if (folder := settings.config_folder) is not None:
        _require_file(f"{folder.rstrip('/')}/config.json", "scorer.config_folder")
    if settings.judge is not None and settings.judge.prompt_file is not None:
        _require_file(settings.judge.prompt_file, "scorer.judge.prompt_file")


def _require_model(settings: PlainScorerSettings) -> None:
    try:
        require_model_files(ModelSettings(id=settings.model or "", revision=settings.revision))
    except ModelError as error:
        message = str(error).replace("model.id", "scorer.model")
        raise ScorerError(f"scorer {settings.name}: {message}") from error


def _require_file(place: str, setting: str) -> None:
    """Stop if there is nothing at a path or URL, or an empty file.

    Raises:
        ScorerError: There is nothing.
    """
    if not has_protocol(place):
        path = Path(require_existing(place))
        if path.is_file() and not path.stat().st_size:
            raise ScorerError(
                f"{place}: expected a file with something in it, found an empty one. It was "
                f"probably cut short when it was copied. Fetch it again ({setting})."
            )
        return
    try:
        list_files(place)
    except DatasetError as error:
        raise ScorerError(
            f"{place}: expected a file, found none. Check {setting}, and that the credentials in "
            "the environment may read it."
        ) from error


def _require_release(settings: PlainScorerSettings) -> None:
    """Stop if a release of Detoxify is neither here nor to be had.

    Raises:
        ScorerError: It is not.
    """
    if any(_guess_torch_hub().glob("checkpoints/*.ckpt")):
        return  # some release is: which one needs torch to tell, and the stage says it
    refuse_download(settings)


def refuse_download(settings: PlainScorerSettings) -> str | None:
    """Whether weights that are not here can be had.

    Returns:
        The address they will be downloaded from, None if they are here.

    Raises:
        ScorerError: They cannot be had.
    """
    from huggingface_hub import constants

    from eigenshift.toxicity.scorers.detoxify_checkpoint import find_release  # imports torch

    release = find_release(settings)
    if release.path.is_file():
        return None
    what = (
        f"scorer {settings.name}: expected the weights of Detoxify {settings.model_type!r} in "
        f"{release.path.parent}, found none"
    )
    remedy = "Set scorer.checkpoint and scorer.config_folder to local copies."
    if constants.HF_HUB_OFFLINE:
        raise ScorerError(f"{what}, and offline by HF_HUB_OFFLINE. {remedy}")
    answer, status = ask_server(release.url)
    if status is None or status in GONE:
        raise ScorerError(f"{what}, and {release.url}: {answer}. {remedy}")
    return release.url


def _guess_torch_hub() -> Path:
    """Where torch keeps what it downloads, as `torch.hub.get_dir` finds it, without torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub"


def ask_server(url: str) -> tuple[str, int | None]:
    """What a server says when it is asked for its page's head, in words and as its status."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - an address of our own
    try:
        with urllib.request.urlopen(request, timeout=ASKING_SECONDS):  # noqa: S310
            return "answers", OK
    except urllib.error.HTTPError as error:
        return f"answers with status {error.code}", error.code
    except OSError as error:
        return f"no answer ({type(error).__name__})", None
