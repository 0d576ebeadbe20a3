"""Every exception EigenShift raises on purpose.

Each message follows one template: `<thing and place>: expected <x>, found <y>. <likely cause>.
<command or setting that fixes it>.` Messages carry row ids and paths, never sample text.
"""

from __future__ import annotations


class EigenShiftError(Exception):
    """Base of all errors raised on purpose."""


class SettingsError(EigenShiftError):
    """A setting, preset or command-line value cannot be used (exit code 2)."""


class DatasetError(EigenShiftError):
    """A source file cannot be read, or nothing in it is usable (exit code 2)."""


class ModelError(EigenShiftError):
    """A language model cannot be loaded, or its head is not supported (exit code 2)."""


class ScorerError(EigenShiftError):
    """A toxicity classifier cannot be loaded or trusted (exit code 2)."""


class StorageError(EigenShiftError):
    """The store or a source refuses a request, is full, or keeps failing."""


class ArtifactError(EigenShiftError):
    """An artifact or manifest is missing, damaged or of another version."""


class DamagedFileError(ArtifactError):
    """A file of an artifact is not what its manifest says, though it was when the run began.

    Attributes:
        path: Of the file, relative to the store's root.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message, path)  # both, so that it survives the way from another process
        self.path = path

    def __str__(self) -> str:
        return str(self.args[0])


class ComponentError(EigenShiftError):
    """Components cannot be scored, selected or patched as asked."""


class FoldingError(ComponentError):
    """A change has no place in the weights of this architecture; it can be measured with hooks."""


class NothingToDampError(ComponentError):
    """No component tells toxic from other positions within the bounds: there is nothing to damp."""


class EvaluationError(EigenShiftError):
    """A comparison cannot be made from the evidence at hand."""


class AuditError(EigenShiftError):
    """An audit query was refused or failed."""


class QuestionError(AuditError):
    """What was asked cannot be answered, whatever the store holds (exit code 2)."""


INPUT_ERRORS: tuple[type[EigenShiftError], ...] = (
    SettingsError,
    DatasetError,
    ModelError,
    ScorerError,
    QuestionError,
)
"""Errors caused by what the user gave us: the command line exits with 2."""
