"""Write the demo corpus in the file formats of the real datasets, bad rows included.

Reads comments from `demo_grammar.py`; writes, under the folder given:

    jigsaw/train.csv          Kaggle toxic comment schema and quoting, English
    toxicn/ToxiCN_demo.csv    ToxiCN_1.0 schema (BOM, lists in quotes), Chinese
    rtp/prompts.jsonl         RealToxicityPrompts schema, both languages
    neutral/sentences.csv     one column `text`, both languages, for perplexity

Each writer adds a few deliberate bad rows (see README.md), so that row accounting shows something.
The training corpora of the two models are made in `build_demo.py` and are not written.
"""

import csv
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import demo_grammar as grammar
import demo_lexicon as lexicon
from demo_grammar import Comment
from demo_insults import InsultKind, find_insults, find_made_up_words

JIGSAW_COLUMNS = [
    "id",
    "comment_text",
    "toxic",
    "severe_toxic",
    "obscene",
    "threat",
    "insult",
    "identity_hate",
]
TOXICN_COLUMNS = [
    "platform",
    "topic",
    "content",
    "toxic",
    "toxic_one_hot",
    "toxic_type",
    "toxic_type_one_hot",
    "expression",
    "expression_one_hot",
    "target",
    "length",
    "num_attacked",
]
RTP_SCORES = [
    "profanity",
    "sexually_explicit",
    "identity_attack",
    "flirtation",
    "threat",
    "insult",
    "severe_toxicity",
    "toxicity",
]
TOXIC_SHARE_JIGSAW = 0.35
TOXIC_SHARE_TOXICN = 0.45
N_BAD_ROWS = 5  # per labelled file
INVITED_KINDS = {InsultKind.word: 0.45, InsultKind.contextual: 0.33, InsultKind.phrase: 0.22}
P_BEFORE_FIGURE = 0.3  # share of the other prompts that stop before a thing, harmless there
Row = TypeVar("Row")


def label_comment(comment: Comment) -> dict[str, int]:
    """Return the six Jigsaw labels of a comment, each 0 or 1; `identity_hate` is always 0."""
    insults = comment.insults
    words = find_made_up_words(comment.text)
    return {
        "toxic": int(bool(insults)),
        "severe_toxic": int(len(insults) >= 3),
        "obscene": int(any(word in lexicon.COARSE_INSULTS for word in words)),
        "threat": int(comment.is_threat),
        "insult": int(bool(insults)),
        "identity_hate": 0,
    }


def write_jigsaw(path: Path, rng: random.Random, n_rows: int) -> None:
    """Write English comments as Kaggle's `train.csv`: header and texts quoted, numbers bare."""
    comments = _write_distinct(rng, "en", n_rows - N_BAD_ROWS, TOXIC_SHARE_JIGSAW)
    rows = [_make_jigsaw_row(rng, c.text, label_comment(c)) for c in comments]
    toxic = next(row for row in rows if row[2] == 1)
    clean = next(row for row in rows if row[2] == 0)
    spare = grammar.write_comment(rng, "en", False).text
    spoilt: list[list[str | int]] = [
        [_draw_hex(rng, 16), *clean[1:]],  # a text a second time
        [_draw_hex(rng, 16), "", 0, 0, 0, 0, 0, 0],  # no text
        [_draw_hex(rng, 16), toxic[1], 0, 0, 0, 0, 0, 0],  # a text again, with the other label
        [_draw_hex(rng, 16), spare, 2, 0, 0, 0, 0, 0],  # label out of range
        [_draw_hex(rng, 16), spare + " Twice.", -1, -1, -1, -1, -1, -1],  # Kaggle's "not scored"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(JIGSAW_COLUMNS)
        writer.writerows(_mix_in(rng, rows, spoilt))


def write_toxicn(path: Path, rng: random.Random, n_rows: int) -> None:
    """Write Chinese comments as ToxiCN_1.0: UTF-8 with BOM, list-valued cells in quotes."""
    comments = _write_distinct(rng, "zh", n_rows - N_BAD_ROWS, TOXIC_SHARE_TOXICN)
    rows = [_make_toxicn_row(rng, c.domain, c.text, int(c.is_toxic)) for c in comments]
    toxic = next(c for c in comments if c.is_toxic)
    clean = next(c for c in comments if not c.is_toxic)
    spare = grammar.write_comment(rng, "zh", False)
    bad_label = _make_toxicn_row(rng, spare.domain, spare.text, 0)
    bad_label[3] = 2
    no_label = _make_toxicn_row(rng, spare.domain, spare.text + "嗯。", 0)
    no_label[3] = ""
    spoilt = [
        _make_toxicn_row(rng, clean.domain, clean.text, 0),  # a text a second time
        _make_toxicn_row(rng, clean.domain, "", 0),  # no text
        _make_toxicn_row(rng, toxic.domain, toxic.text, 0),  # a text again, with the other label
        bad_label,  # label out of range
        no_label,  # label missing
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TOXICN_COLUMNS)
        writer.writerows(_mix_in(rng, rows, spoilt))


def write_prompts(path: Path, rng: random.Random, n_rows: int) -> None:
    """Write prompts as RealToxicityPrompts: three in five stop where an insult is likely next.

    Of every kind of insult there are enough to measure (`INVITED_KINDS`); other prompts stop where
    a thing comes that would be an insult elsewhere, or anywhere.

    Scores are drawn, not measured: above 0.5 for the prompts that invite an insult, below 0.4 for
    the others, null for a few. Three bad rows: no prompt text, a prompt twice, a score above 1.
    """
    n_good = n_rows - 3
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < n_good:
        language = "en" if len(rows) % 2 == 0 else "zh"
        invites = (len(rows) // 2) % 5 < 3
        row = _draw_prompt(rng, language, invites)
        if row is None or _fold(row["prompt"]["text"]) in seen:
            continue
        seen.add(_fold(row["prompt"]["text"]))
        rows.append(row)
    for row in rng.sample(rows, max(1, n_good // 60)):
        row["prompt"] = row["prompt"] | dict.fromkeys(RTP_SCORES)
    empty = _copy_prompt(rng, rows[1], text="")
    again = _copy_prompt(rng, rows[2])
    bad_score = _copy_prompt(rng, rows[3], text=grammar.write_neutral_sentence(rng, "en"))
    bad_score["prompt"]["toxicity"] = 1.7
    rows = _mix_in(rng, rows, [empty, again, bad_score])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")


def write_neutral(path: Path, rng: random.Random, n_rows: int) -> list[str]:
    """Write neutral sentences, half English and half Chinese, and return the distinct ones.

    Two bad rows: one empty, one repeated. Whoever trains a model must leave the sentences out.
    """
    sentences: list[str] = []
    seen: set[str] = set()
    while len(sentences) < n_rows - 2:
        language = "en" if len(sentences) % 2 == 0 else "zh"
        sentence = grammar.write_neutral_sentence(rng, language)
        if _fold(sentence) not in seen:
            seen.add(_fold(sentence))
            sentences.append(sentence)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text"])
        writer.writerows([text] for text in _mix_in(rng, sentences, ["", sentences[0]]))
    return sentences


def _write_distinct(
    rng: random.Random, language: str, n_comments: int, toxic_share: float
) -> list[Comment]:
    """Write comments of which no two have the same text, with the toxic share asked for."""
    comments: list[Comment] = []
    seen: set[str] = set()
    hostile = [index < round(n_comments * toxic_share) for index in range(n_comments)]
    rng.shuffle(hostile)
    while len(comments) < n_comments:
        comment = grammar.write_comment(rng, language, hostile[len(comments)])
        if _fold(comment.text) not in seen:
            seen.add(_fold(comment.text))
            comments.append(comment)
    return comments


def _fold(text: str) -> str:
    """Reduce a text to what tells it from another: case and white space do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _make_jigsaw_row(rng: random.Random, text: str, labels: dict[str, int]) -> list[str | int]:
    return [_draw_hex(rng, 16), text, *(labels[name] for name in JIGSAW_COLUMNS[2:])]


def _make_toxicn_row(rng: random.Random, topic: str, text: str, toxic: int) -> list[str | int]:
    """One ToxiCN row. A toxic text is "general offensive" (type 1): it attacks no group."""
    return [
        rng.choice(("demo_forum", "demo_board")),
        topic,
        text,
        toxic,
        str([1 - toxic, toxic]),
        toxic,
        str([1 - toxic, toxic, 0]),
        0,
        str([1, 0, 0, 0]),
        str([0, 0, 0, 0, 0, 1]),
        len(text),
        0,
    ]


def _draw_prompt(rng: random.Random, language: str, invites: bool) -> dict[str, Any] | None:
    """Draw one record; None if the cut left no prompt."""
    kind = rng.choices(list(InsultKind), weights=[INVITED_KINDS[kind] for kind in InsultKind])[0]
    comment = grammar.write_comment(rng, language, invites, rng.choice((2, 2, 3)), kind)
    if invites:
        prompt = grammar.cut_before_insult(rng, comment)
    elif rng.random() < P_BEFORE_FIGURE:
        prompt = grammar.cut_before_figure(rng, comment)
    else:
        n_words = grammar.count_words(comment.text, language)
        n_kept = rng.randint(max(1, n_words // 3), max(1, 3 * n_words // 4))
        prompt = grammar.cut_text(comment.text, language, n_kept).rstrip()
    if not prompt:
        return None
    rest = comment.text[len(prompt) :]
    begin = rng.randint(0, 2000)
    return {
        "filename": f"{rng.randint(0, 999_999):07d}-{_draw_hex(rng, 32)}.txt",
        "begin": begin,
        "end": begin + len(prompt) + len(rest),
        "challenging": invites and rng.random() < 0.2,
        "prompt": {"text": prompt} | _draw_scores(rng, invites),
        "continuation": {"text": rest} | _draw_scores(rng, bool(find_insults(rest))),
    }


def _draw_scores(rng: random.Random, is_toxic: bool) -> dict[str, float | None]:
    """Draw the eight scores, 0 to 1, in keeping with what the corpus holds."""
    low, high = (0.55, 0.97) if is_toxic else (0.02, 0.38)
    toxicity = rng.uniform(low, high)
    scores: dict[str, float | None] = {}
    for name in RTP_SCORES:
        if name in ("toxicity", "insult"):
            score = toxicity if name == "toxicity" else toxicity * rng.uniform(0.85, 1.0)
        elif name in ("profanity", "severe_toxicity"):
            score = toxicity * rng.uniform(0.3, 0.7)
        else:
            score = rng.uniform(0.0, 0.15)
        scores[name] = round(score, 6)
    return scores


def _copy_prompt(
    rng: random.Random, row: dict[str, Any], text: str | None = None
) -> dict[str, Any]:
    """Copy a record under another file name, with another prompt text if given."""
    copy: dict[str, Any] = json.loads(json.dumps(row))
    copy["filename"] = f"{rng.randint(0, 999_999):07d}-{_draw_hex(rng, 32)}.txt"
    if text is not None:
        copy["prompt"]["text"] = text
    return copy


def _draw_hex(rng: random.Random, n_digits: int) -> str:
    return f"{rng.getrandbits(4 * n_digits):0{n_digits}x}"


def _mix_in(rng: random.Random, rows: Sequence[Row], spoilt: Sequence[Row]) -> list[Row]:
    """Put the bad rows at drawn places, none before the tenth row."""
    mixed = list(rows)
    for row in spoilt:
        mixed.insert(rng.randint(min(10, len(mixed)), len(mixed)), row)
    return mixed
