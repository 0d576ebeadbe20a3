"""`python -m eigenshift`: the command line, which is a package of its own beside this one.

The library does not know it; what is installed says where it is (the script `eigenshift`).
"""

from __future__ import annotations

import sys
from importlib import metadata

SCRIPT = "eigenshift"


def main() -> None:
    """Do what the script does."""
    scripts = metadata.entry_points(group="console_scripts", name=SCRIPT)
    script = next(iter(scripts), None)
    if script is None:
        sys.exit(
            f"error: python -m {SCRIPT}: expected the package {SCRIPT} to be installed, found its "
            "code without its metadata. Install it (make install, or pip install eigenshift); in "
            "a clone `python -m flows` works without."
        )
    script.load()()


if __name__ == "__main__":
    main()
