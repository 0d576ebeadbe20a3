"""Format `patch`: the patch's own two files, which need no store and no copy of the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.store.artifact import Artifact

USAGE = f"""## Load

    from pathlib import Path
    from eigenshift.models import load_model
    from eigenshift.patching import load_patch, patched_model
    from eigenshift.settings import ModelSettings

    folder = Path("<this folder>")
    language_model = load_model(ModelSettings(id="<base model>"))
    patch = load_patch(folder / "{TENSORS_NAME}", folder / "{DESCRIPTION_NAME}")
    with patched_model(language_model, patch):
        ...

`stack_patches` makes one patch of several. `{TENSORS_NAME}` holds V_k (`v`, hidden x k) and
sigma_k; of each linear layer that changes `linears/<module>/left` (out x k) and `right` (in x k),
whose product is added to its weight. `{DESCRIPTION_NAME}` has the indices, the factor and digests
of what changes, before and after.

## Undo

Leave the `with` block: the base's own parameters are back, byte for byte. `apply_patch` patches for
good and returns what `undo()` needs.
"""


def write_patch_files(artifact: Artifact, folder: Path, model_id: str) -> None:
    """Copy the patch; `model_id` is what it calls its base, without the place of a folder."""
    shutil.copyfile(artifact.fetch(TENSORS_NAME), folder / TENSORS_NAME)
    description = json.loads(artifact.fetch(DESCRIPTION_NAME).read_text(encoding="utf-8"))
    text = json.dumps(description | {"model_id": model_id}, indent=2, sort_keys=True)
    (folder / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")
