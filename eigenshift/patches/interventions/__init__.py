"""Interventions: ours, its controls and the published peers, each giving one edit of the model.

Reads the evidence that `registry.py` lists for each; writes a patch (`patching.py`).
"""

from __future__ import annotations

from eigenshift.patches.interventions.building import build_patch, carry_out, list_needs
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.interventions.registry import INTERVENTIONS, find_recipe
from eigenshift.patches.requests import Need, PatchRequest

__all__ = [
    "INTERVENTIONS",
    "Evidence",
    "Need",
    "Outcome",
    "PatchRequest",
    "build_patch",
    "carry_out",
    "find_recipe",
    "list_needs",
]
