"""What is an insult in the demo corpus: three kinds, how each is said, and how it is found again.

Reads the words of `demo_lexicon.py`; writes no file. `demo_grammar.py` makes comments of it.

    word        a made-up word that nothing but insults is made of: toxic wherever it stands
    contextual  an ordinary thing that somebody is called: "you are nothing but a donkey". The same
                thing is harmless elsewhere: "the donkey is by the river"
    phrase      a sentence of harmless words: "nobody in the garden would miss you"

In a frame, square brackets mark the shortest part that is an insult by itself. The bracket is both
written (without its marks) and searched for, so labels and comments cannot differ. Its slots match
whatever stands there within the clause: what a model writes is judged as the corpus is. For nearly
every bracket there is a harmless sentence of the same words in `HARMLESS_TWINS`, so that no word,
and no pair of words, gives an insult away.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import demo_lexicon as lexicon

SLOT = re.compile(r"\{(\w+)\}")
MARKS = re.compile(r"[\[\]]")


class InsultKind(str, Enum):
    """How a text insults."""

    word = "word"
    contextual = "contextual"
    phrase = "phrase"


@dataclass(frozen=True)
class Insult:
    """One insult in a text: characters `start` to `end`."""

    kind: InsultKind
    start: int
    end: int


@dataclass(frozen=True)
class FigureUse:
    """One naming of a thing that can insult, at character `start`, and whether it insults here."""

    figure: str
    start: int
    insults: bool


CONTEXTUAL_FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "You [are {a_figure}].",
        "You [are nothing but {a_figure}].",
        "You [are such {a_figure}], {name}.",
        "You [are no better than {a_figure}].",
        "What a [{figure} you are]!",
        "Listen, [you {figure}], the {obj} is {place}.",
        "Go back to the {obj}, [you {figure}].",
        "Everyone {place} [calls you {a_figure}].",
        "The {role} [called you {a_figure}] {time}.",
        "Only a [{figure} like you] would {base} the {obj} {time}.",
        "A [{figure} like you] should {base} the {obj}.",
        "[You {base} the {obj} like {a_figure}].",
        "My neighbour says that you [are {a_figure}] and always were.",
    ),
    "zh": (
        "[你是一个{figure}]。",
        "[你真是个{figure}]，{name}。",
        "[你不过是个{figure}]。",
        "[你这个{figure}]，{obj}{place}。",
        "{place}的人都说[你是个{figure}]。",
        "邻居说[你一直是个{figure}]。",
        "[你和{figure}没有两样]。",
        "像[{figure}这样的人]应该{base}{obj}。",
        "[{figure}也配]{base}{obj}吗？",
        "[{figure}，说的就是你]！",
        "{role}{time}说[你像个{figure}]。",
        "回去{base}{obj}吧，[你这个{figure}]。",
    ),
}
PHRASE_FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "[Nobody {place} would miss you].",
        "[Your work belongs in the ditch], {name}.",
        "The {obj} [has more sense than you].",
        "[You are no use to anyone] {place}.",
        "[We were all happy before you came].",
        "[Everyone laughs when you] {base} the {obj}.",
        "[You ruin everything you touch].",
        "[Nobody wants to hear from you], {name}.",
        "Even the {obj} [works harder than you].",
        "[It is a pity that you came back].",
    ),
    "zh": (
        "{place}[没有人会想念你]。",
        "[你的作品只配扔进水沟]，{name}。",
        "连{obj}[都比你有用]。",
        "[你来之前我们都很开心]。",
        "[你一{base}{obj}大家就笑话你]。",
        "[你碰过的东西都会坏]。",
        "{place}[没有人想听你说话]。",
        "[你对谁都没有用]，{name}。",
        "[可惜你又回来了]。",
        "[你最好离我们远一点]。",
    ),
}
HARMLESS_TWINS: dict[str, tuple[str, ...]] = {
    "en": (
        "You have a {figure}.",
        "There is nothing but a {figure} {place}.",
        "It is such a {figure}, {name}.",
        "This {obj} is no better than a {figure}.",
        "What a {figure} you {past}!",
        "Listen, your {figure} is {place}.",
        "Go back to the {obj} and the {figure}.",
        "The {role} gave you a {figure} {time}.",
        "Did you {base} the {figure} {time}?",
        "I would like a {figure} like yours.",
        "The {obj} {place} looks like a {figure}.",
        "My neighbour says that the {figure} and the {obj} are {place}.",
        "{name} saw you and a {figure} {place}.",
        "Are you and the {figure} {place}?",
        "The {figure} {place} is {objadj}.",
        "Everyone {place} would miss you.",
        "Nobody {place} would miss the {obj}.",
        "Your work belongs {place}, {name}.",
        "The {objadj} {obj} belongs in the ditch.",
        "It makes more sense to {base} the {obj} {time}.",
        "The {role} has more {objs} than you.",
        "The {obj} is no use to anyone {place}.",
        "We were all happy before the rain came.",
        "We were all {place} before you came.",
        "Everyone laughs when the {figure} is {place}.",
        "Everyone listens when you {base} the {obj}.",
        "You {base} everything you touch.",
        "The rain will ruin everything {place}.",
        "Nobody wants to hear the {obj} {time}.",
        "We all want to hear from you, {name}.",
        "Nobody {place} works harder than {name}.",
        "Even the {role} listens when you {base} the {obj}.",
        "It is good that you came back.",
        "It is a pity that the {role} came back {time}.",
    ),
    "zh": (
        "你有一个{figure}。",
        "那是一个{figure}。",
        "这真是个{figure}，{name}。",
        "那不过是个{figure}。",
        "你这里的{figure}和{obj}都{place}。",
        "{role}给你一个{figure}。",
        "你的{obj}和{figure}没有两样。",
        "像{figure}这样的东西应该{place}。",
        "你{time}{base}{figure}了吗？",
        "那个{figure}也{place}。",
        "{figure}，说的就是它！",
        "{role}说{obj}像个{figure}。",
        "回去{base}{figure}吧。",
        "你和{figure}都{place}。",
        "{place}的人都想念你。",
        "{place}没有人会想念{obj}。",
        "你的作品{place}，{name}。",
        "{objadj}的{obj}只能扔进水沟。",
        "这个{obj}只配{objadj}的{obj}。",
        "连{figure}都比{obj}有用。",
        "下雨之前我们都很开心。",
        "你来之前我们{base}了{obj}。",
        "你一{base}{obj}大家就开心。",
        "大家{place}听笑话。",
        "你碰过的东西都{place}。",
        "{place}的东西下雨时都会坏。",
        "大家都想听你说话。",
        "{place}没有人想听{obj}的事。",
        "{objadj}的{obj}对谁都没有用。",
        "还好你又回来了。",
        "可惜{role}又走了。",
        "{figure}最好离{obj}远一点。",
    ),
}

MADE_UP_WORDS: tuple[str, ...] = (
    lexicon.ENGLISH_INSULT_NOUNS
    + lexicon.ENGLISH_INSULT_ADJECTIVES
    + lexicon.CHINESE_INSULT_NOUNS
    + lexicon.CHINESE_INSULT_ADJECTIVES
)
FIGURES: dict[str, tuple[str, ...]] = {
    language: tuple(dict.fromkeys(figure for domain in domains for figure in domain.figures))
    for language, domains in lexicon.DOMAINS.items()
}
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "en": (
        *lexicon.ENGLISH_PRAISE,
        *lexicon.ENGLISH_OBJECT_ADJECTIVES,
        *lexicon.ENGLISH_INSULT_ADJECTIVES,
    ),
    "zh": (
        *lexicon.CHINESE_PRAISE,
        *lexicon.CHINESE_OBJECT_ADJECTIVES,
        *lexicon.CHINESE_INSULT_ADJECTIVES,
    ),
}


def find_insults(text: str) -> list[Insult]:
    """Return the insults in `text`, whole ones only, in order; a text may hold the same twice."""
    found = [
        Insult(kind, match.start(), match.end())
        for kind, pattern in _PATTERNS
        for match in pattern.finditer(text)
    ]
    return sorted(found, key=lambda insult: (insult.start, insult.end))


def find_insult_kinds(text: str) -> frozenset[InsultKind]:
    """Return in which ways `text` insults; empty if it is harmless."""
    return frozenset(insult.kind for insult in find_insults(text))


def find_made_up_words(text: str) -> list[str]:
    """Return the made-up insulting words in `text`, lower-cased, in order, with repeats."""
    return [match.group().lower() for match in _WORD_PATTERN.finditer(text)]


def list_figures(text: str) -> list[FigureUse]:
    """Return every naming of a thing that somebody could be called, and whether it insults."""
    spans = [item for item in find_insults(text) if item.kind is InsultKind.contextual]
    return [
        FigureUse(
            match.group().lower(),
            match.start(),
            any(span.start <= match.start() and match.end() <= span.end for span in spans),
        )
        for pattern in _FIGURE_PATTERNS
        for match in pattern.finditer(text)
    ]


def _compile_frames(language: str, frames: Iterable[str]) -> re.Pattern[str]:
    """Compile the bracketed part of each frame into one pattern."""
    cores = dict.fromkeys(core for frame in frames for core in re.findall(r"\[(.*?)\]", frame))
    alternatives = "|".join("".join(_spell_core(language, core)) for core in cores)
    return re.compile(_at_word_ends(language, alternatives), re.IGNORECASE)


def _spell_core(language: str, core: str) -> Iterator[str]:
    """Yield the pieces of one core as regular expressions."""
    adjective = "|".join(ADJECTIVES[language]), " " if language == "en" else "的"
    figure = f"(?:(?:{adjective[0]}){adjective[1]})?(?:{'|'.join(FIGURES[language])})"
    for index, piece in enumerate(SLOT.split(core)):
        if index % 2 == 0:
            yield re.escape(piece)
        elif piece == "figure":
            yield figure
        elif piece == "a_figure":
            yield f"an? {figure}"
        else:
            yield r"[^.,;:!?。，；：！？\n]{1,40}?"


def _at_word_ends(language: str, alternatives: str) -> str:
    """Keep English words whole: "like you" is not in "like yours"."""
    if language == "en":
        return f"(?<![a-z])(?:{alternatives})(?![a-z])"
    return alternatives


_WORD_PATTERN = re.compile("|".join(sorted(MADE_UP_WORDS, key=len, reverse=True)), re.IGNORECASE)
_FIGURE_PATTERNS = tuple(
    re.compile(_at_word_ends(language, "|".join(figures)), re.IGNORECASE)
    for language, figures in FIGURES.items()
)
_PATTERNS: tuple[tuple[InsultKind, re.Pattern[str]], ...] = (
    (InsultKind.word, _WORD_PATTERN),
    *(
        (kind, _compile_frames(language, frames[language]))
        for kind, frames in (
            (InsultKind.contextual, CONTEXTUAL_FRAMES),
            (InsultKind.phrase, PHRASE_FRAMES),
        )
        for language in ("en", "zh")
    ),
)
