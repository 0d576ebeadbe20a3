"""Patches: small reversible changes of weights, and what decides on them.

Reads components and other evidence; writes patches. Measuring what a patch does is `evaluation/`,
writing it for other tools `exporting/`.

    interventions/  ours, its controls and the published peers
    fisher/         rank-one changes by benefit per cost, found in rounds
    edits.py        a change as a formula on states, of the head, units, linear layers or logits
    edit_files.py   a change as named tensors
    folding.py      an edit as new weights
    cost.py         what an edit costs on harmless text, kind by kind
    strength.py     the strongest within a budget
    patching.py     build, store, apply and undo a patch
    served_forms.py what a patch becomes in GGUF formats, merged or as an adapter
    saving.py       the patched model as files, for another program to load
    requests.py     which patch to build, from which evidence
    stages.py       what the stages of this room are
"""
