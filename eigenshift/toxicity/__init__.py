"""How toxic a text is, and which of its words make it so.

Reads continuations and classifiers; writes scores and toxic positions, and, of labelled texts, a
classifier. Which model wrote the text
does not matter here; states at those positions are `components/`'s.

    scorers/            what judges a text
    scorer_training.py  a linear scorer out of labelled texts
    scorer_quality.py   how well it does on those it has not seen
    scoring.py          a shard of continuations scored
    unscored.py         how many may go without a score
    toxic_positions.py  the words that make continuations toxic
    occlusion.py        by leaving words out
    attribution.py      by the classifier's gradient, checked by leaving out
    phrases.py          by a list of words and phrases
    word_lists.py       lists of words, and whether a text contains one
    functional_cases.py  short texts that each test one thing
    word_spans.py       where a text's words are
    token_spans.py      where a token's characters are
    stages.py           what the stages of this room are
"""
