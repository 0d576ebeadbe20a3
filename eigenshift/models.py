"""Public names for notebooks and for what exports show: a model of your own, loaded."""

from eigenshift.model.loading import LanguageModel, TextModel, load_model, load_text_model

__all__ = ["LanguageModel", "TextModel", "load_model", "load_text_model"]
