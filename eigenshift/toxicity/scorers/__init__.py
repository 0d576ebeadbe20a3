"""Toxicity scorers behind one small interface.

`load_scorer` opens what the settings name: Detoxify (`detoxify_checkpoint.py`), any Hugging Face
text classifier (`text_classifier.py`), n-grams with weights (`linear.py`), a language model that is
asked (`judge.py`), a list of words (`lexicon.py`), or one of these for each language
(`languages.py`). A scorer returns probabilities; what is toxic enough, and which texts are scored,
is decided elsewhere. A text that cannot be scored gives None with a reason, never a number.
"""

from __future__ import annotations

from eigenshift.toxicity.scorers.interface import Score, Scorer
from eigenshift.toxicity.scorers.loading import identify_scorer, load_scorer, open_scorer
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier

__all__ = ["OpenClassifier", "Score", "Scorer", "identify_scorer", "load_scorer", "open_scorer"]
