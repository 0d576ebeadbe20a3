"""The audit over a store of 500 runs and 50 million neuron rows: opening it, and typical questions.

Every measurement is a process of its own. `cold` is the first time this machine sees the store,
`warm` the next. Seconds of a question include making its views; `seconds_again` is the same
question asked once more in the same session, as in the shell.

    python tests/benchmarks/bench_audit.py            # the full size: about 3 GB of disk
    python tests/benchmarks/bench_audit.py --small
    python tests/benchmarks/bench_audit.py --s3       # smaller, with requests and bytes

Bars: opening under 2 s, cold and warm; top units and lineage of one run under 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import Bar, at_most, publish  # noqa: E402 - started as a file

PROMISED = ("top_units", "top_units_of_current_release", "lineage", "lineage_of_a_release")


def list_questions(n_runs: int) -> dict[str, str]:
    """Typical questions, about one run in the middle unless they say otherwise."""
    from eigenshift.audit.questions import fill_question, find_question
    from tests.support.large_store import name_release, name_run

    run, release = name_run(n_runs // 2), name_release(n_runs // 2)
    return {
        "top_units": "SELECT layer, site, neuron_index, auroc, cohens_d FROM neurons "
        f"WHERE run_id = '{run}' ORDER BY auroc DESC LIMIT 20",
        "top_units_of_current_release": "SELECT layer, neuron_index, auroc FROM neurons JOIN "
        "(SELECT run_id FROM releases WHERE is_current) USING (run_id) ORDER BY auroc DESC "
        "LIMIT 20",
        "layers": fill_question("paper_rq2", run),
        "units_against_layers": fill_question("paper_rq1", run),
        "lineage": f"SELECT kind, fingerprint, inputs FROM artifacts WHERE run_id = '{run}'",
        "lineage_of_a_release": find_question("release_lineage").fill({"release": release}),
        "drift_over_releases": find_question("release_drift").template,
        "toxicity_of_all_runs": "SELECT run_id, arm, value FROM evaluations WHERE metric = "
        "'toxicity_rate'",
        "best_unit_of_every_run": "SELECT run_id, max(auroc) FROM neurons GROUP BY run_id",
    }


def measure(store: str, question: str) -> dict[str, Any]:
    """Open, ask, ask again; in this process."""
    from eigenshift.audit import open_audit

    started = time.perf_counter()
    with open_audit(store) as session:
        session.query("SELECT count(*) FROM runs")
        opened = time.perf_counter()
        rows = session.query(question).num_rows
        asked = time.perf_counter()
        before = session.traffic
        session.query(question)
        again = time.perf_counter()
        return {
            "open_seconds": round(opened - started, 3),
            "seconds": round(asked - opened, 3),
            "seconds_again": round(again - asked, 3),
            "rows": rows,
            "requests": before.requests,
            "bytes_read": before.bytes_read,
        }


def run_apart(store: str, question: str, cache: Path) -> dict[str, Any]:
    """`measure` in a new process with its own cache folder."""
    found = subprocess.run(
        [sys.executable, __file__, "--measure", store, question],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(found.stdout))


def list_bars(questions: dict[str, Any]) -> list[Bar]:
    """What is promised of a local store."""
    opened = {
        state: max(found[state]["open_seconds"] for found in questions.values())
        for state in ("cold", "warm")
    }
    bars = [at_most(f"opening, {state}, seconds", opened[state], 2.0) for state in opened]
    return bars + [
        at_most(f"{name.replace('_', ' ')}, {kind}, seconds", questions[name]["warm"][key], 1.0)
        for name in PROMISED
        for kind, key in (("first question", "seconds"), ("asked again", "seconds_again"))
    ]


def ask_all(store: str, n_runs: int, scratch: Path) -> dict[str, Any]:
    """Every question, cold and warm."""
    found = {}
    for number, (name, sql) in enumerate(list_questions(n_runs).items()):
        cache = scratch / f"cache-{number}"
        found[name] = {state: run_apart(store, sql, cache) for state in ("cold", "warm")}
    return found


def main() -> None:
    """Build the store, then ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a quick look: no bar counts")
    parser.add_argument("--s3", action="store_true", help="on the S3 server of .ci/s3_server")
    parser.add_argument("--measure", nargs=2, metavar=("STORE", "SQL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    from tests.support.large_store import build_large_store
    from tests.support.s3_server import s3_server_process

    n_runs, n_rows = (20, 200_000) if arguments.small or arguments.s3 else (500, 50_000_000)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = str(scratch / "store")
        if arguments.s3:
            server = stack.enter_context(s3_server_process(scratch / "s3"))
            os.environ.update(server.environment)
            server.make_bucket("bench")
            store = "s3://bench/store"
        started = time.perf_counter()
        build_large_store(store, n_runs, n_rows)
        built = round(time.perf_counter() - started, 1)
        questions = ask_all(store, n_runs, scratch)
    document = {"runs": n_runs, "neuron_rows": n_rows, "build_seconds": built}
    publish(
        "audit-s3" if arguments.s3 else "audit",
        {**document, "questions": questions},
        [] if arguments.s3 else list_bars(questions),
        is_small=arguments.small,
    )


if __name__ == "__main__":
    main()
