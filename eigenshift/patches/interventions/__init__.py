"""Interventions: ours, its controls and the published peers, each giving one edit of the model.

Reads the evidence that `registry.py` lists for each; writes a patch (`patching.py`).
"""
