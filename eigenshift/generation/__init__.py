"""Continuations of prompts, of the base and of patched arms, on shared randomness.

Reads samples and patches; writes prompts and continuations. Judging the text is `toxicity/`.

    prompts.py        selection and evaluation prompts
    continuations.py  every prompt continued with every arm
    records.py        prompts encoded, continuations as rows
    decoding.py       one batch of several arms, step by step
    branches.py       how a batch is read on: from the model's cache, or whole again
    sampling.py       random numbers of their own for every continuation
    served.py         one arm by an engine: weights written, served and checked
    engines.py        the engine itself: vLLM
    stages.py         what the stages of this room are
"""
