"""What generates toxicity: the head's components, scored and chosen.

Reads continuations, toxic positions and the head's weight; writes labelled texts as continuations,
head states, the decomposition and the table of components. Changing the head is `patches/`.

    labelled_text.py        labelled texts in the form of continuations
    head_states.py          states about to generate a toxic word, and matched others
    decomposition.py        singular values and right singular vectors of the head
    device_algebra.py       its heavy steps on a GPU
    spectral_gaps.py        which singular vectors are determined
    scores.py               how toxic each component is
    selection_stability.py  the same in resamples
    text_halves.py          which texts calibrate and which evaluate
    harmless_texts.py       harmless text of the domain, and what each is for
    budget_texts.py         the kinds of text that a budget is measured on
    calibration.py          states on which a choice's cost and benefit are measured
    choice.py               components and factors by benefit and cost
    meaning.py              tokens and contexts of a component
    table.py                all of it as one table
    stages.py               what the stages of this room are
"""
