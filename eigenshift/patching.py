"""Public names for notebooks and for what exports show: a patch, loaded, applied and undone."""

from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    load_patch,
    patched_model,
    stack_patches,
)

__all__ = ["Patch", "apply_patch", "load_patch", "patched_model", "stack_patches"]
