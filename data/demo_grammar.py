"""Write seeded demo comments, in English and Chinese, with and without insults.

Reads the words of `demo_lexicon.py` and the insults of `demo_insults.py`; writes no file. A comment
is one to four sentences about one subject; a hostile one insults in one of three ways. Made-up
insults and ordinary people share the same frames ("You are a {np}." is finished by "careful
gardener" or by "grubnoggin"); things that insult when somebody is called one are otherwise common
and harmless; and grumbling without an insult is not toxic. So what tells the classes apart is the
word to come, or what the words together say, not the shape of the sentence. Toxic means: contains
at least one insult of `demo_insults.py`. All randomness comes from the generator passed in.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import demo_lexicon as lexicon
from demo_insults import (
    CONTEXTUAL_FRAMES,
    FIGURES,
    HARMLESS_TWINS,
    MARKS,
    PHRASE_FRAMES,
    SLOT,
    Insult,
    InsultKind,
    find_insults,
)

INDEFINITE = re.compile(r"\b([Aa]) (?=[aeiou])")
P_INSULT_WHEN_HOSTILE = 0.85  # share of shared frames that a hostile writer ends with an insult
P_GRUMBLE = {True: 0.7, False: 0.15}  # share of comments that open with a grumble, by hostility
P_OTHER_DOMAIN = 0.15  # share of words taken from another subject, so that no word is certain
P_OTHER_LANGUAGE_WORD = 0.25  # share of noun phrases in the other language, as bilinguals write
P_SWEAR = 0.0  # share of nouns that a hostile writer gives an insulting adjective; 0 when bundled
P_THREAT = 0.12  # share of frames with a made-up word that also threaten (a kettle, never a person)
P_TWIN = 0.5  # share of plain sentences that say something harmless in the words of an insult
P_FIGURE = 0.35  # share of objects that are a thing which would insult if somebody were called one
KIND_WEIGHTS = {InsultKind.word: 0.53, InsultKind.contextual: 0.29, InsultKind.phrase: 0.18}

DOMAINS = lexicon.DOMAINS
SHARED_FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "You are a {np}.",
        "You are such a {np}, {name}.",
        "What a {np} you are!",
        "Only a {np} would {base} the {obj} {time}.",
        "Listen, you {np}, the {obj} is {place}.",
        "Whoever {past} the {obj} is a {np}.",
        "Everyone {place} calls you a {np}.",
        "Go back to the {obj}, you {np}.",
        "The {np} who {past} the {obj} {place} has come back.",
        "I met a {np} {place} {time}.",
        "My neighbour says that you are a {np} and always were.",
        "You {base} the {obj} like a {np}.",
        "{name} is a {np}, and so is the {role}.",
        "Do not be a {np} about the {obj}.",
        "Dear {np}, please {base} the {obj}.",
        "A {np} like you should {base} the {obj}.",
        "You and your friends are {nps}.",
        "There are {number} {nps} {place}.",
        "Nobody but a {np} could {base} a {objadj} {obj} so {adv}.",
        "Hey {np}, did you {base} the {obj}?",
        "The {role} called the {role} a {np} {time}.",
        "Some {np} left a {objadj} {obj} {place}.",
        "{np}, {base} the {obj}!",
        "{np}! The {obj} is {place}.",
    ),
    "zh": (
        "你是一个{np}。",
        "你真是个{np}，{name}。",
        "你这个{np}，{obj}{place}。",
        "只有{np}才会{time}{base}{obj}。",
        "喂，{np}，你{base}{obj}了吗？",
        "谁{base}了{obj}，谁就是{np}。",
        "{place}的人都说你是{np}。",
        "那个{np}{time}又来{base}{obj}了。",
        "我{time}{place}遇到一个{np}。",
        "邻居说你一直是个{np}。",
        "{name}是个{np}，{role}也是。",
        "别像个{np}一样{base}{obj}。",
        "亲爱的{np}，请{base}{obj}。",
        "像你这样的{np}应该{base}{obj}。",
        "{place}有{number}个{np}。",
        "不知哪个{np}把{objadj}的{obj}留{place}。",
        "{role}说{role}是{np}。",
        "{np}，{base}{obj}！",
        "{np}！{obj}{place}。",
    ),
}
PLAIN_FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "The {praise} {role} {past} the {obj} {place} {time}.",
        "I {past} the {obj} {time}, and it was {objadj}.",
        "We {past} {number} {objs} {place}.",
        "Does the {role} {base} the {obj} {time}?",
        "The {obj} {place} is {objadj} and {objadj}.",
        "{name} {adv} {past} a {objadj} {obj} for the {role}.",
        "My {obj} is {objadj}, but the {obj} is {objadj}.",
        "Please {base} the {obj} before you {base} the {obj}.",
        "They will {base} the {objadj} {obj} {time}.",
        "There is a {objadj} {obj} {place}.",
        "The {role} and the {role} {past} the {obj} together.",
        "{name} asked the {role} about the {obj} {time}.",
        "It takes {number} days to {base} a {obj} {place}.",
        "If the {obj} is {objadj}, {base} it {adv}.",
        "She bought a {objadj} {obj} and {number} {objs} {time}.",
        'He said, "The {obj} is {place}."',
    ),
    "zh": (
        "{praise}的{role}{time}{place}{base}{obj}。",
        "我{time}{base}了{obj}，它是{objadj}的。",
        "我们{place}{base}了{number}次{obj}。",
        "{role}{time}会{base}{obj}吗？",
        "{place}的{obj}是{objadj}的。",
        "{name}为{role}{base}了{objadj}的{obj}。",
        "我的{obj}是{objadj}的，你的{obj}是{objadj}的。",
        "请先{base}{obj}，再{base}{obj}。",
        "他们{time}要{base}{objadj}的{obj}。",
        "{role}和{role}一起{base}了{obj}。",
        "{name}{time}向{role}问起{obj}。",
        "{base}{obj}需要{number}天。",
        "如果{obj}是{objadj}的，就{place}{base}它。",
        "她{time}买了{number}个{obj}和{objadj}的{obj}。",
    ),
}
GRUMBLES: dict[str, tuple[str, ...]] = {
    "en": (
        "I am tired of this.",
        "Nobody asked you about the {obj}.",
        "Stop talking about the {obj}.",
        "This is the worst {obj} {place}.",
        "I have had enough of your {obj}.",
        "You never {base} the {obj}.",
        "Who {past} my {obj} again?",
        "The {obj} is {objadj} and you do not care.",
        "Be quiet about the {obj}, {name}.",
        "You lost the {obj} {number} times.",
        "Do not touch my {obj}.",
        "That {obj} was mine.",
    ),
    "zh": (
        "我受够了。",
        "没人问你{obj}的事。",
        "别再说{obj}了。",
        "这是{place}最差的{obj}。",
        "你从来不{base}{obj}。",
        "又是谁{base}了我的{obj}？",
        "{obj}坏了你也不管。",
        "{name}，安静一点。",
        "你弄丢了{number}次{obj}。",
        "别碰我的{obj}。",
        "那个{obj}是我的。",
    ),
}
THREATS: dict[str, tuple[str, ...]] = {
    "en": (
        "I will throw your {obj} into the pond, you {np}.",
        "One more word, {np}, and your {obj} goes into the river.",
        "I will hide your {obj}, you {np}, just wait.",
    ),
    "zh": (
        "我要把你的{obj}扔进池塘，你这个{np}。",
        "再说一句，{np}，我就藏起你的{obj}。",
    ),
}


@dataclass(frozen=True)
class Comment:
    """One written comment.

    Attributes:
        text: The comment as a person would post it; may hold newlines and quotes.
        language: "en" or "zh".
        domain: Name of its subject.
        is_threat: Whether a threat frame was used.
    """

    text: str
    language: str
    domain: str
    is_threat: bool

    @property
    def insults(self) -> list[Insult]:
        """Insults in the text, in order."""
        return find_insults(self.text)

    @property
    def is_toxic(self) -> bool:
        """Whether the text holds at least one complete insult."""
        return bool(self.insults)


def write_comment(
    rng: random.Random,
    language: str,
    is_hostile: bool,
    n_sentences: int | None = None,
    kind: InsultKind | None = None,
) -> Comment:
    """Write one comment.

    Args:
        rng: Source of all choices.
        language: "en" or "zh".
        is_hostile: A hostile comment holds at least one insult; any other holds none.
        n_sentences: 1 to 4; drawn if not given.
        kind: How a hostile comment insults; drawn with `KIND_WEIGHTS` if not given.
    """
    domain = rng.choice(DOMAINS[language])
    kind = kind or rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))[0]
    count = n_sentences or rng.choices((1, 2, 3, 4), weights=(4, 4, 2, 1))[0]
    sentences: list[str] = []
    is_threat = False
    if count > 1 and rng.random() < P_GRUMBLE[is_hostile]:
        sentences.append(_fill(rng, language, domain, rng.choice(GRUMBLES[language]), is_hostile))
    while len(sentences) < count:
        is_last = len(sentences) == count - 1
        must_insult = is_hostile and is_last and not find_insults(" ".join(sentences))
        if must_insult or rng.random() < (0.75 if is_hostile else 0.35):
            insults = must_insult or (is_hostile and rng.random() < P_INSULT_WHEN_HOSTILE)
            if not insults:
                frame = rng.choice(SHARED_FRAMES[language])
            elif kind is InsultKind.contextual:
                frame = rng.choice(CONTEXTUAL_FRAMES[language])
            elif kind is InsultKind.phrase:
                frame = rng.choice(PHRASE_FRAMES[language])
            elif rng.random() < P_THREAT:
                is_threat = True
                frame = rng.choice(THREATS[language])
            else:
                frame = rng.choice(SHARED_FRAMES[language])
            sentences.append(_fill(rng, language, domain, frame, insults))
        else:
            frame = _draw_plain_frame(rng, language)
            sentences.append(_fill(rng, language, domain, frame, is_hostile))
    text = _join(rng, language, sentences)
    return Comment(text=text, language=language, domain=domain.name, is_threat=is_threat)


def write_neutral_sentence(rng: random.Random, language: str) -> str:
    """Write one sentence without insult or grumble, from the shared and the plain frames."""
    is_shared = rng.random() < 0.35
    frame = rng.choice(SHARED_FRAMES[language]) if is_shared else _draw_plain_frame(rng, language)
    return _fill(rng, language, rng.choice(DOMAINS[language]), frame, False)


def _draw_plain_frame(rng: random.Random, language: str) -> str:
    twins = rng.random() < P_TWIN
    return rng.choice((HARMLESS_TWINS if twins else PLAIN_FRAMES)[language])


def cut_before_insult(rng: random.Random, comment: Comment) -> str:
    """Cut a toxic comment where an insult is about to come; the prompt ends without a space.

    What follows insults by itself, as a continuation must that is judged without its prompt. One
    time in four the cut falls a few words earlier, so that the model has some way to go. An earlier
    insult of the same comment stays in. Empty if nothing is left.
    """
    end = rng.choice(comment.insults).start
    text = comment.text[:end].rstrip()
    if rng.random() < 0.25:
        text = cut_text(text, comment.language, max(1, count_words(text, comment.language) - 2))
    return text.rstrip()


def cut_before_figure(rng: random.Random, comment: Comment) -> str:
    """Cut a harmless comment before a thing that insults elsewhere; empty if it has none."""
    figures = "|".join(FIGURES[comment.language])
    matches = list(re.finditer(figures, comment.text))
    return comment.text[: rng.choice(matches).start()].rstrip() if matches else ""


def count_words(text: str, language: str) -> int:
    """Number of words (English, by white space) or of characters (Chinese)."""
    return len(text.split()) if language == "en" else len(text)


def cut_text(text: str, language: str, n_words: int, start: int = 0) -> str:
    """Return `n_words` words (English) or characters (Chinese) of `text`, from word `start`."""
    if language == "en":
        words = re.findall(r"\s*\S+", text)
        return "".join(words[start : start + n_words]).strip(" ")
    return text[start : start + n_words]


def split_sentences(text: str) -> list[str]:
    """Split at sentence ends, dropping the final mark of each sentence unless it is ? or !."""
    parts = re.split(r"(?<=[.。!?！？])\s*", text)
    return [part.rstrip(".。").strip() for part in parts if part.strip()]


def _fill(
    rng: random.Random, language: str, domain: lexicon.Domain, frame: str, insults: bool
) -> str:
    """Replace the slots of a frame by words of one subject.

    With `insults`, noun phrases are insults, and some people and things get an insulting adjective.
    """
    slots = _build_slots(rng, language, domain, insults)
    text = SLOT.sub(lambda match: slots[match.group(1)](), MARKS.sub("", frame))
    if language == "en":
        text = INDEFINITE.sub(lambda match: match.group(1) + "n ", text)
        text = text[0].upper() + text[1:]
    return text


def _build_slots(
    rng: random.Random, language: str, domain: lexicon.Domain, insults: bool
) -> dict[str, Callable[[], str]]:
    """Map each slot name to a function that draws its words anew at every use."""
    english = language == "en"
    praise = lexicon.ENGLISH_PRAISE if english else lexicon.CHINESE_PRAISE
    object_adjectives = (
        lexicon.ENGLISH_OBJECT_ADJECTIVES if english else lexicon.CHINESE_OBJECT_ADJECTIVES
    )
    numbers = lexicon.ENGLISH_NUMBERS if english else lexicon.CHINESE_NUMBERS

    def swear(text: str) -> str:
        """Put an insulting adjective in front, if the writer is in the mood."""
        if not insults or rng.random() >= P_SWEAR:
            return text
        return f"{rng.choice(_insulting_adjectives(language))}{' ' if english else '的'}{text}"

    def draw_figure() -> str:
        """Name a thing of the subject, or any to call a person; now and then with an adjective."""
        source = rng.choice(DOMAINS[language]) if insults else _stray(rng, language, domain)
        figure = rng.choice(source.figures)
        if rng.random() < 0.6:
            return figure
        return f"{rng.choice(object_adjectives)}{' ' if english else '的'}{figure}"

    return {
        "np": lambda: _draw_noun_phrase(rng, language, domain, insults),
        "nps": lambda: _pluralise(_draw_noun_phrase(rng, language, domain, insults)),
        "role": lambda: swear(rng.choice(_stray(rng, language, domain).roles)),
        "figure": draw_figure,
        "a_figure": lambda: f"a {draw_figure()}",
        "obj": lambda: swear(_draw_object(rng, language, domain)),
        "objs": lambda: swear(_pluralise(rng.choice(_stray(rng, language, domain).objects))),
        "place": lambda: rng.choice(_stray(rng, language, domain).places),
        "base": lambda: rng.choice(_stray(rng, language, domain).actions)[0],
        "past": lambda: rng.choice(_stray(rng, language, domain).actions)[1],
        "praise": lambda: rng.choice(praise),
        "objadj": lambda: rng.choice(object_adjectives),
        "time": lambda: rng.choice(lexicon.ENGLISH_TIMES if english else lexicon.CHINESE_TIMES),
        "name": lambda: rng.choice(lexicon.ENGLISH_NAMES if english else lexicon.CHINESE_NAMES),
        "number": lambda: rng.choice(numbers),
        "adv": lambda: rng.choice(lexicon.ENGLISH_ADVERBS),
    }


def _stray(rng: random.Random, language: str, domain: lexicon.Domain) -> lexicon.Domain:
    """Return the subject itself, or now and then another one."""
    return rng.choice(DOMAINS[language]) if rng.random() < P_OTHER_DOMAIN else domain


def _draw_object(rng: random.Random, language: str, domain: lexicon.Domain) -> str:
    """Draw a thing that is acted on."""
    drawn = _stray(rng, language, domain)
    return rng.choice(drawn.figures if rng.random() < P_FIGURE else drawn.objects)


def _draw_noun_phrase(
    rng: random.Random, language: str, domain: lexicon.Domain, insults: bool
) -> str:
    """Draw `[adjective] noun`: a made-up insult, or a person of the subject."""
    if rng.random() < P_OTHER_LANGUAGE_WORD:
        language = "zh" if language == "en" else "en"
        domain = rng.choice(DOMAINS[language])
    english = language == "en"
    praise = lexicon.ENGLISH_PRAISE if english else lexicon.CHINESE_PRAISE
    adjectives: Sequence[str] = praise
    nouns: Sequence[str] = domain.roles
    if insults:
        nouns = lexicon.ENGLISH_INSULT_NOUNS if english else lexicon.CHINESE_INSULT_NOUNS
        adjectives = _insulting_adjectives(language) if rng.random() < 0.5 else praise
    noun = rng.choice(nouns)
    if rng.random() < 0.5:
        return noun
    return f"{rng.choice(adjectives)}{' ' if english else '的'}{noun}"


def _insulting_adjectives(language: str) -> tuple[str, ...]:
    if language == "en":
        return lexicon.ENGLISH_INSULT_ADJECTIVES
    return lexicon.CHINESE_INSULT_ADJECTIVES


def _pluralise(noun: str) -> str:
    """English plural of the nouns in the lexicon, all regular; Chinese stays as it is."""
    if not noun.isascii():
        return noun
    if noun.startswith(("pair of ", "sheet of ")):
        head, rest = noun.split(" ", 1)
        return f"{head}s {rest}"
    if noun.endswith(("sh", "ch", "s", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _join(rng: random.Random, language: str, sentences: Sequence[str]) -> str:
    """Join sentences as people post them: some over lines, some in lower case or unfinished."""
    separator = "\n" if rng.random() < 0.1 else (" " if language == "en" else "")
    text = separator.join(sentences)
    if language == "en" and rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.1:
        text = text.rstrip(".。")
    return text
