"""Toxicity scorers behind one small interface.

`loading.py` opens what the settings name, and `identity.py` digests it unopened: Detoxify
(`detoxify_checkpoint.py`), any Hugging Face text classifier (`text_classifier.py`), n-grams with
weights (`linear.py`), a language model that is asked (`judge.py`), a list of words (`lexicon.py`),
or one of these for each language (`languages.py`). A scorer returns probabilities; what is toxic
enough, and which texts are scored, is decided elsewhere. A text that cannot be scored gives None
with a reason, never a number.
"""
