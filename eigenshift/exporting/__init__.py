"""Exporting: a run's patch as a folder that other tools load.

Reads runs, patches and the files of base models; writes folders, whole or not at all, and pushes
them where asked. How weights change is `patches/`'s.

    exports.py          one export, of any format
    patch_files.py      format "patch": the patch's own files
    lora.py             format "lora": a PEFT adapter
    merged.py           format "merged": a model, rewritten where the patch changes it
    base_files.py       the base's files, and which parameter lies where
    checks.py           an export against what was measured
    targets.py          what becomes of a changed head in other tools
    adapter_targets.py  whether they would load an adapter
    cards.py            the README that goes with it
    limits.py           its part on what the numbers do not tell
    hub.py              pushing to a hub
"""

from eigenshift.exporting.exports import FORMATS, ExportOptions, export_patch

__all__ = ["FORMATS", "ExportOptions", "export_patch"]
