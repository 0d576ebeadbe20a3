from eigenshift.api import Activations as Activations
from eigenshift.api import AppliedPatch as AppliedPatch
from eigenshift.api import Audit as Audit
from eigenshift.api import Evaluation as Evaluation
from eigenshift.api import Model as Model
from eigenshift.api import ModelPatch as ModelPatch
from eigenshift.api import ResultTable as ResultTable
from eigenshift.api import Study as Study
from eigenshift.api import Texts as Texts
from eigenshift.api import compute_neurons as compute_neurons
from eigenshift.api import evaluate as evaluate
from eigenshift.api import extract_activations as extract_activations
from eigenshift.api import load_model as load_model
from eigenshift.api import load_patch as load_patch
from eigenshift.api import load_preset as load_preset
from eigenshift.api import load_scorer as load_scorer
from eigenshift.api import open_audit as open_audit
from eigenshift.api import read_texts as read_texts
from eigenshift.api import study_head as study_head

__version__: str
