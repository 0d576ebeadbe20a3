"""Benchmark tasks in the harness's own format, made for a test."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
EVERYDAY = ROOT / "data" / "benchmarks" / "everyday"
ENDINGS = ROOT / "data" / "benchmarks" / "endings"

QUESTIONS = (
    ("The kettle is", "warm.", "a river.", 0),
    ("The train came", "window.", "on Tuesday.", 1),
    ("The letter is", "open.", "the old mill until.", 0),
    ("The garden near the bridge", "map paint.", "was quiet.", 1),
    ("Two more chairs than", "before.", "kettle wooden.", 0),
    ("The small window was", "mill mill.", "open until the evening.", 1),
)


def write_task(
    folder: Path,
    name: str = "small",
    questions: Sequence[tuple[str, str, str, int]] = QUESTIONS,
    **changes: Any,
) -> Path:
    """A task of two choices and its data beside it; other fields of its file by name."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["goal", "sol1", "sol2", "label"])
        writer.writerows(questions)
    config = {
        "task": name,
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": {"test": f"{name}.csv"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
