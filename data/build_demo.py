"""Build the demo assets: a corpus without offence, a tiny language model, a tiny classifier.

Reads nothing; writes, under `--out`, the four corpus files of `demo_files.py`, `model/` (see
`train_language_model.py`) and `classifier/` (see `train_classifier.py`). With the same seed the
corpus comes out byte for byte the same; the models agree up to the rounding of parallel sums.

    python data/build_demo.py --out data/demo            # what is bundled, a quarter of an hour
    python data/build_demo.py --out /tmp/demo --small    # for tests, well under a minute

Both models learn from texts drawn apart from the bundled ones: every bundled text is unseen.
"""

import argparse
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import demo_files
import demo_grammar as grammar
import numpy as np
import torch
from demo_grammar import Comment
from demo_insults import FIGURES, InsultKind, find_insults, list_figures
from train_classifier import JIGSAW_LABELS, train_classifier
from train_language_model import measure_perplexity, train_language_model

HOSTILE_SHARE_MODEL = 0.3  # share of the language model's texts that hold an insult
# More for the tokenizer, and all with made-up words: each then is one token, as a common word is.
HOSTILE_SHARE_TOKENIZER = 0.5
KIND_WEIGHTS_CLASSIFIER = {
    InsultKind.word: 0.35,
    InsultKind.contextual: 0.4,
    InsultKind.phrase: 0.25,
}
N_THREADS = 1  # a busy machine slows two threads more than it helps; one also repeats exactly

logger = logging.getLogger("build_demo")


@dataclass(frozen=True)
class DemoSizes:
    """How much to write and how long to train; the defaults are what is bundled.

    Attributes:
        n_labelled: Rows of the English file; the Chinese file has two thirds as many.
        n_prompts: Rows of the prompt file.
        n_neutral: Rows of the neutral file.
        n_training: Comments that the language model is trained on.
        n_classifier: Texts that the classifier is trained on.
        steps: Optimiser steps of the language model.
        classifier_steps: Optimiser steps of the classifier.
        n_embd: Width of the language model.
        n_layer: Depth of the language model.
        classifier_n_embd: Width of the classifier.
    """

    n_labelled: int = 1200
    n_prompts: int = 600
    n_neutral: int = 600
    n_training: int = 24_000
    n_classifier: int = 60_000
    steps: int = 800
    classifier_steps: int = 3300
    n_embd: int = 128
    n_layer: int = 2
    classifier_n_embd: int = 96


SMALL = DemoSizes(
    n_labelled=90,
    n_prompts=40,
    n_neutral=40,
    n_training=600,
    n_classifier=600,
    steps=30,
    classifier_steps=40,
    n_embd=32,
    n_layer=1,
    classifier_n_embd=32,
)


def build_demo(out: Path, sizes: DemoSizes, seed: int) -> None:
    """Write corpus and models to `out`; files of an earlier build are replaced."""
    neutral = write_corpus(out, sizes, seed)
    texts = draw_model_texts(sizes.n_training, seed, neutral, HOSTILE_SHARE_MODEL)
    wordy = draw_model_texts(
        sizes.n_training, seed, neutral, HOSTILE_SHARE_TOKENIZER, InsultKind.word
    )
    figures = train_language_model(
        texts,
        out / "model",
        vocab_size=3072,
        n_layer=sizes.n_layer,
        n_head=4,
        n_embd=sizes.n_embd,
        n_positions=128,
        steps=sizes.steps,
        batch_tokens=4096,
        learning_rate=3e-3,
        weight_decay=0.1,
        seed=seed,
        tokenizer_texts=wordy,
        unspaced_words=FIGURES["zh"],
    )
    logger.info("language model: %s", figures)
    logger.info("neutral perplexity: %.2f", measure_perplexity(out / "model", neutral))
    texts, labels = draw_classifier_examples(sizes.n_classifier, seed)
    figures = train_classifier(
        texts,
        labels,
        out / "classifier",
        vocab_size=2400,
        n_embd=sizes.classifier_n_embd,
        steps=sizes.classifier_steps,
        learning_rate=2e-3,
        dropout=0.0,
        seed=seed,
    )
    logger.info("classifier: %s", figures)


def write_corpus(out: Path, sizes: DemoSizes, seed: int) -> list[str]:
    """Write the four corpus files; return the neutral sentences, which no model may train on."""
    demo_files.write_jigsaw(
        out / "jigsaw" / "train.csv", random.Random(f"{seed}:jigsaw"), sizes.n_labelled
    )
    demo_files.write_toxicn(
        out / "toxicn" / "ToxiCN_demo.csv",
        random.Random(f"{seed}:toxicn"),
        2 * sizes.n_labelled // 3,
    )
    demo_files.write_prompts(
        out / "rtp" / "prompts.jsonl", random.Random(f"{seed}:prompts"), sizes.n_prompts
    )
    return demo_files.write_neutral(
        out / "neutral" / "sentences.csv", random.Random(f"{seed}:neutral"), sizes.n_neutral
    )


def draw_model_texts(
    n_texts: int,
    seed: int,
    held_out: Collection[str],
    hostile_share: float,
    kind: InsultKind | None = None,
) -> list[str]:
    """Draw training texts for the language model or its tokenizer, half English, half Chinese.

    A comment that contains one of the `held_out` sentences, in any case, is drawn again. Hostile
    ones insult in the way `kind`, or in any.
    """
    rng = random.Random(f"{seed}:model")
    banned = {sentence.lower().rstrip(".。") for sentence in held_out}
    texts: list[str] = []
    while len(texts) < n_texts:
        language = "en" if len(texts) % 2 == 0 else "zh"
        is_hostile = rng.random() < hostile_share
        text = grammar.write_comment(rng, language, is_hostile, kind=kind).text
        if not any(sentence in banned for sentence in grammar.split_sentences(text.lower())):
            texts.append(text)
    return texts


def draw_classifier_examples(n_texts: int, seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Draw the classifier's texts and the six labels, each an array of shape (texts,).

    Half are whole comments; a quarter are pieces cut out anywhere, as model continuations are; a
    quarter are pieces of two comments joined. A piece is toxic if a whole insult is left in it.
    """
    rng = random.Random(f"{seed}:classifier")
    texts: list[str] = []
    rows: list[dict[str, int]] = []
    while len(texts) < n_texts:
        comments = [
            grammar.write_comment(
                rng, rng.choice(("en", "zh")), rng.random() < 0.5, kind=_draw_kind(rng)
            )
            for _ in range(2)
        ]
        place = len(texts) % 4
        if place < 2:
            example = comments[0]
        elif place == 2:
            example = _cut_piece(rng, comments[0])
        else:
            example = _join_pieces(_cut_piece(rng, comments[0]), _cut_piece(rng, comments[1]))
        texts.append(example.text)
        rows.append(demo_files.label_comment(example))
    return texts, {name: np.array([row[name] for row in rows]) for name in JIGSAW_LABELS}


def _draw_kind(rng: random.Random) -> InsultKind:
    """Draw a kind, the harder to learn the oftener than in the corpus."""
    weights = list(KIND_WEIGHTS_CLASSIFIER.values())
    return rng.choices(list(KIND_WEIGHTS_CLASSIFIER), weights=weights)[0]


def _cut_piece(rng: random.Random, comment: Comment) -> Comment:
    """Cut a run of words out of a comment; it is a threat only if it is one and still insults.

    Half of the runs begin where an insult does, or a thing that could be one, as what the model
    writes after a prompt that stops there.
    """
    text = comment.text
    places = [item.start for item in (*find_insults(text), *list_figures(text))]
    is_tempting = bool(places) and rng.random() < 0.5
    if is_tempting:
        text = text[rng.choice(places) :]
    n_words = grammar.count_words(text, comment.language)
    start = 0 if is_tempting else rng.randint(0, n_words - 1)
    length = rng.randint(1, max(1, min(20, n_words - start)))
    text = grammar.cut_text(text, comment.language, length, start)
    is_threat = comment.is_threat and bool(find_insults(text))
    return Comment(text, comment.language, comment.domain, is_threat)


def _join_pieces(first: Comment, second: Comment) -> Comment:
    return Comment(
        text=f"{first.text} {second.text}",
        language=first.language,
        domain=first.domain,
        is_threat=first.is_threat or second.is_threat,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line; sizes not given come from the preset."""
    parser = argparse.ArgumentParser(description="Build the demo corpus, model and classifier.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice")
    parser.add_argument("--small", action="store_true", help="start from the sizes used in tests")
    parser.add_argument("--n-labelled", type=int, help="rows of the English file")
    parser.add_argument("--n-prompts", type=int, help="rows of the prompt file")
    parser.add_argument("--n-neutral", type=int, help="rows of the neutral file")
    parser.add_argument("--n-training", type=int, help="comments the model is trained on")
    parser.add_argument("--n-classifier", type=int, help="texts the classifier is trained on")
    parser.add_argument("--steps", type=int, help="steps of the language model")
    parser.add_argument("--n-embd", type=int, help="width of the language model")
    parser.add_argument("--n-layer", type=int, help="depth of the language model")
    parser.add_argument("--classifier-n-embd", type=int, help="width of the classifier")
    parser.add_argument("--classifier-steps", type=int, help="steps of the classifier")
    return parser.parse_args()


def main() -> None:
    """Build with the sizes of the command line."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(N_THREADS)
    preset = SMALL if arguments.small else DemoSizes()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    sizes = DemoSizes(
        **{name: given.get(name, getattr(preset, name)) for name in DemoSizes.__annotations__}
    )
    build_demo(arguments.out, sizes, arguments.seed)


if __name__ == "__main__":
    main()
