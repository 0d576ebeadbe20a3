"""EigenShift: find, damp and audit what makes a language model generate toxicity.

Method: Shaik et al., NeurIPS 2025 (arXiv 2509.16660). This package is the library: plain
functions over artifacts, without Prefect. `tasks/` wraps them, `flows/` chains them.

For notebooks `import eigenshift as es` has the names of `eigenshift.api` (docs/python.md), each
imported when it is first used: they need torch, and this package is imported by every command. To
type checkers these names are of any type here; `from eigenshift.api import ...` has their own.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = "eigenshift.api"
__all__ = [
    "Activations",
    "AppliedPatch",
    "Audit",
    "Evaluation",
    "Model",
    "ModelPatch",
    "ResultTable",
    "Study",
    "Texts",
    "__version__",
    "compute_neurons",
    "evaluate",
    "extract_activations",
    "load_model",
    "load_patch",
    "load_preset",
    "load_scorer",
    "open_audit",
    "read_texts",
    "study_head",
]


def __getattr__(name: str) -> Any:
    """A name of the face, imported now."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_FACE), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
