"""Offer the refresh to a Prefect server, with the settings as a typed form in its UI.

Started by `python -m flows.serve` beside a running server (`prefect server start`); stop it with
Ctrl-C. The demo's settings prefill the form. A try-out: what runs for keeps is in `deployments/`.
"""

from __future__ import annotations

import sys
from typing import Any

from eigenshift.base.errors import SettingsError
from flows.options import EXIT_BAD_INPUT
from flows.prefect_environment import create_home
from flows.server_check import require_server


def main() -> None:
    """Serve until interrupted."""
    create_home()
    try:
        require_server()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_BAD_INPUT)
    from prefect import serve

    from eigenshift.settings import load_preset
    from flows.compare import compare
    from flows.detect import detect
    from flows.refresh import refresh
    from flows.tune import tune

    settings = load_preset("demo").model_dump(mode="json")
    # a coroutine only where an event loop runs already
    deployments: list[Any] = [
        flow.to_deployment(
            name=f"{flow.name}-on-demand",
            parameters={"settings": settings},
            tags=["eigenshift"],
            description=(flow.description or "").partition("\n")[0],
        )
        for flow in (refresh, compare, tune, detect)
    ]
    serve(*deployments)


if __name__ == "__main__":
    main()
