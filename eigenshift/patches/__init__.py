"""Patches: small reversible changes of weights, and what decides on them.

Reads components and other evidence; writes patches. Measuring what a patch does is `evaluation/`,
writing it for other tools `exporting/`.

    interventions/  ours, its controls and the published peers
    edits.py        a change as affine map of the head's input, and of units
    folding.py      an edit as new weights
    patching.py     build, store, apply and undo a patch
    requests.py     which patch to build, from which evidence
    stages.py       what the stage of this room is
"""
