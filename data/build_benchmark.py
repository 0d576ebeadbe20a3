"""Questions that the demo's language model can answer: how does a sentence of its corpus end?

Reads `demo/neutral/sentences.csv`; writes `endings.csv`, the data of the benchmark task
`benchmarks/endings/endings.yaml`: the beginning of an English sentence, its end, and its end
with two neighbouring words exchanged. Byte for byte the same with every run.

    python data/build_benchmark.py --out data/benchmarks/endings
"""

import argparse
import csv
import random
from pathlib import Path

SENTENCES = Path(__file__).parent / "demo" / "neutral" / "sentences.csv"
MIN_WORDS = 8
SEED = 0


def list_questions(sentences: list[str]) -> list[tuple[str, str, str, int]]:
    """Beginning, two ends, and which of them is the sentence's own."""
    generator = random.Random(SEED)
    questions = []
    for sentence in dict.fromkeys(sentences):
        words = sentence.split()
        if not sentence.isascii() or len(words) < MIN_WORDS:
            continue
        beginning, end = words[: len(words) // 2], words[len(words) // 2 :]
        place = generator.choice([n for n in range(len(end) - 1) if end[n] != end[n + 1]])
        others = [*end[:place], end[place + 1], end[place], *end[place + 2 :]]
        label = generator.randrange(2)
        ends = [" ".join(end), " ".join(others)]
        questions.append((" ".join(beginning), ends[label], ends[1 - label], label))
    return questions


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    out: Path = parser.parse_args().out
    with SENTENCES.open(encoding="utf-8", newline="") as handle:
        sentences = [row["text"] for row in csv.DictReader(handle)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "endings.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["goal", "sol1", "sol2", "label"])
        writer.writerows(list_questions(sentences))


if __name__ == "__main__":
    main()
