"""Python and notebooks: the library in a few calls, on objects in memory, without a store.

What `import eigenshift as es` offers (docs/python.md). Every step calls the functions that a run's
stages call, with a run's defaults, so that the same texts give the same numbers; results are small
objects that describe themselves in a terminal and in a notebook. Arithmetic belongs elsewhere.

    models.py           load a model, or take somebody's own
    texts.py            lists, tables and files as texts
    neurons.py          activations, and how well single units tell
    scorers.py          what judges texts: the settings' kinds, or a function
    study.py            from what a model says to components and patches
    patches.py          apply, undo, save, load
    evaluations.py      base and patch on the same prompts
    audits.py           questions to a store
    choices.py          settings without a run
    result_tables.py    Arrow inside, a few rows on the screen
    representations.py  rich, HTML and plain
    scratch.py          a folder for one step
"""

from eigenshift.api.audits import Audit, open_audit
from eigenshift.api.evaluations import Evaluation, evaluate
from eigenshift.api.models import Model, load_model
from eigenshift.api.neurons import Activations, compute_neurons, extract_activations
from eigenshift.api.patches import AppliedPatch, ModelPatch, load_patch
from eigenshift.api.result_tables import ResultTable
from eigenshift.api.scorers import load_scorer
from eigenshift.api.study import Study, study_head
from eigenshift.api.texts import Texts, read_texts
from eigenshift.settings import load_preset

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
