"""Ngrams: linear classifiers of texts by their n-grams, how they score and explain, their folders.

Reads and writes one folder per classifier: JSON, safetensors, no code. Knows neither settings nor
scikit-learn, whose TF-IDF and linear models it computes to the last bit. Where a classifier comes
from is said elsewhere: trained on labelled texts (`toxicity/`), or taken out of a package
(`fetching/`).

    analysis.py     which n-grams a text has, and where
    classifier.py   their weights, and what these make of a text
    folders.py      a classifier written and read
    fitted.py       a classifier out of scikit-learn's fitted objects
"""

from eigenshift.ngrams.classifier import Member, NgramClassifier, Share
from eigenshift.ngrams.folders import identify_classifier, read_classifier, write_classifier

__all__ = [
    "Member",
    "NgramClassifier",
    "Share",
    "identify_classifier",
    "read_classifier",
    "write_classifier",
]
