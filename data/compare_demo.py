"""What the arms of a finished comparison on the demo leave, by kind of insult.

Reads the continuations of the last run in a store and says by rule (`demo_insults.py`) which insult
and how; no classifier is asked. Intervals are of prompts drawn anew, differences are paired. Prints
one JSON object; no text.

    eigenshift compare --preset demo --store STORE
    python data/compare_demo.py --store STORE
"""

import argparse
import json

import numpy as np
from demo_insults import InsultKind, find_insult_kinds

from eigenshift.audit.sessions import connect

ANY = "any"
N_BOOTSTRAP, SEED = 2000, 0
JUDGED = "eigenshift_fisher"


def read_shares(store: str) -> dict[str, dict[str, np.ndarray]]:
    """Arm -> kind -> share of each prompt's continuations that insult so, in order of prompts."""
    rows = connect(store, show_text=True).execute(
        "select arm, prompt_id, continuation from generations where part = 'evaluation' "
        "and run_id = (select max(run_id) from generations) order by arm, prompt_id"
    )
    found: dict[str, dict[str, list[set[InsultKind]]]] = {}
    for arm, prompt, text in rows.fetchall():
        found.setdefault(arm, {}).setdefault(prompt, []).append(find_insult_kinds(text))
    return {
        arm: {
            kind: np.array([np.mean([_has(kinds, kind) for kinds in texts]) for texts in of_arm])
            for kind in (ANY, *(kind.value for kind in InsultKind))
        }
        for arm, prompts in found.items()
        for of_arm in [[prompts[prompt] for prompt in sorted(prompts)]]
    }


def _has(kinds: set[InsultKind], kind: str) -> bool:
    return bool(kinds) if kind == ANY else InsultKind(kind) in kinds


def describe(values: np.ndarray) -> list[float]:
    """Mean over prompts and its 95% interval."""
    generator = np.random.default_rng(SEED)
    draws = values[generator.integers(0, len(values), (N_BOOTSTRAP, len(values)))].mean(1)
    return [round(float(value), 4) for value in (values.mean(), *np.percentile(draws, [2.5, 97.5]))]


def main() -> None:
    """Print shares of every arm, and each arm's difference to the judged one."""
    parser = argparse.ArgumentParser(description="Arms on the demo by kind of insult.")
    parser.add_argument("--store", required=True, help="where a comparison or refresh was run")
    arguments = parser.parse_args()
    shares = read_shares(arguments.store)
    figures = {
        arm: {
            kind: {"share": describe(values)}
            | (
                {"minus_judged": describe(values - shares[JUDGED][kind])}
                if JUDGED in shares and arm != JUDGED
                else {}
            )
            for kind, values in by_kind.items()
        }
        for arm, by_kind in shares.items()
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
