"""Paragraphs of plain text -> samples; headings and single sentences are rejected rows.

Reads the same files as `sentences.py`. A model that meets a sentence without what goes before it
knows little of its first words: perplexity of single sentences is several times that of paragraphs,
and says more of how texts begin than of fluency. So harmless text that cost is measured on should
be paragraphs. Text with WikiText's marks of tokenisation is written as people write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from eigenshift.datasets.records import Item, Reader, Reason, Rejection, Sample
from eigenshift.datasets.sentences import make_sentences_reader
from eigenshift.settings import SourceSettings

MIN_SENTENCES = 2
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？]")
UNKNOWN_WORD = "<unk>"
SPACED = re.compile(r"\w [,.](?= |$)")
ATTACHED = re.compile(r"\w[,.](?=\s|$)")
REPAIRS = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r"\s+([.,;:!?%)\]]|n't\b|'(?:s|d|m|re|ve|ll)\b)"), r"\1"),
    (re.compile(r"([(\[$£])\s+"), r"\1"),
    (re.compile(r'"\s*([^"]*?)\s*"'), r'"\1"'),
)
"""After the detokeniser for WikiText of EleutherAI's lm-evaluation-harness (MIT), in brief."""


def make_paragraphs_reader(source: SourceSettings) -> Reader:
    """Reader of plain texts of which each is a paragraph."""
    read = make_sentences_reader(source)

    def read_paragraphs(uri: str) -> Iterator[Item]:
        for item in read(uri):
            yield item if isinstance(item, Rejection) else _require_paragraph(item)

    return read_paragraphs


def undo_tokenisation(text: str) -> str:
    """Text without spaces before punctuation, if it has WikiText's; other text is left alone."""
    if len(SPACED.findall(text)) <= len(ATTACHED.findall(text)):
        return text
    for pattern, repaired in REPAIRS:
        text = pattern.sub(repaired, text)
    return text.strip()


def _require_paragraph(sample: Sample) -> Item:
    text = undo_tokenisation(sample.text)
    if UNKNOWN_WORD in text:
        detail = f"expected text as it was written, found {UNKNOWN_WORD} in place of a word"
        return Rejection(sample.source_row, Reason.not_a_paragraph, detail)
    n_sentences = len(SENTENCE_END.findall(text))
    if text.strip() and n_sentences < MIN_SENTENCES:
        detail = f"expected at least {MIN_SENTENCES} sentences, found {n_sentences}"
        return Rejection(sample.source_row, Reason.not_a_paragraph, detail)
    return replace(sample, text=text)
