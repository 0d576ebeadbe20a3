"""Settings and texts for a real model: animals stand for what is offensive.

Nothing here is: whoever writes "a small dog" is marked as toxic by a list of words, so a model that
was trained on ordinary text can be studied on ordinary text. Neutral paragraphs are those of
Python's own language reference, which every Python ships.
"""

from __future__ import annotations

import csv
import pydoc_data.topics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eigenshift.settings import RefreshSettings

ANIMALS = (
    *("dog", "cat", "mouse", "bear", "fox", "bird", "rabbit", "horse", "cow", "lion", "wolf"),
    *("deer", "squirrel", "elephant", "fish", "frog", "snake", "owl", "duck", "sheep", "goat"),
    *("pig", "monkey", "tiger", "turtle", "butterfly", "bee", "spider"),
)
THINGS = ("boat", "lamp", "ladder", "bottle", "kite", "drum", "bench", "letter", "clock", "basket")
OPENINGS = (
    "The children were surprised to find that the noise came from a",
    "Her favourite animal had always been the",
    "In the garden there lived a small",
    "He had never been so close to a wild",
    "The farmer went out at night to feed the",
    "On the way home we nearly ran over a",
    "The story is about a boy and his pet",
    "What frightened the visitors most was the",
)
PLACES = ("by the river", "in the old town", "behind the school", "near the forest", "at the fair")
N_PARAGRAPHS = 24
STUDIED_LAYER = 14


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def make_settings(model: Path, folder: Path, **more: Any) -> RefreshSettings:
    """A refresh of a real model, as small as it can be and still be decided.

    Args:
        model: Folder of the model.
        folder: Receives the texts and the store.
        more: Sections of the settings that replace these.
    """
    words = folder / "animals.txt"
    words.write_text("\n".join(ANIMALS), encoding="utf-8")
    prompts = [f"{place.capitalize()}, {line}" for place in PLACES for line in OPENINGS]
    nouns = [(noun, 1) for noun in ANIMALS] + [(noun, 0) for noun in THINGS]
    labelled = [
        (f"Yesterday we saw a {noun} {place}.", label) for noun, label in nouns for place in PLACES
    ]
    paragraphs = [
        " ".join(part.split())
        for topic in pydoc_data.topics.topics.values()
        for part in topic.split("\n\n")
        if 150 < len(part) < 500 and not part.startswith(" ") and "::" not in part
    ]
    sources = [
        {
            "name": "sightings",
            "format": "sentences",
            "role": "labelled",
            "uri": write_rows(folder / "labelled.csv", ["text", "label"], labelled),
            "columns": {"label": "label"},
        },
        {
            "name": "openings",
            "format": "sentences",
            "role": "prompts",
            "uri": write_rows(folder / "prompts.csv", ["text"], [[text] for text in prompts]),
        },
        {
            "name": "reference",
            "format": "paragraphs",
            "uri": write_rows(
                folder / "neutral.csv", ["text"], [[text] for text in paragraphs[:N_PARAGRAPHS]]
            ),
        },
    ]
    sections: dict[str, Any] = {
        "store": str(folder / "store"),
        "model": {"id": str(model), "name": "real", "chat": "off"},
        "sources": [{**source, "language": "en"} for source in sources],
        "scorer": {"kind": "lexicon", "words": str(words)},
        "activations": {"layers": [STUDIED_LAYER]},
        "prompts": {"n_selection": 24, "n_evaluation": 16, "min_toxicity": None},
        "generation": {"n_samples": 8, "n_tokens": 8},
        "components": {"positions": "occlusion", "min_toxic_positions": 10},
        "harmless": {"n_continuations": 45, "n_labelled": 20, "n_evaluated": 12},
        "patch": {"n_rounds": 1, "n_terms": 16, "max_metric_tokens": 1500},
        "evaluation": {"max_texts": 10, "max_tokens": 48, "n_bootstrap": 500},
        "gate": {"n_random_draws": 19, "max_random_share": 0.05, "check_reload": False},
    }
    return RefreshSettings.model_validate({**sections, **more})
