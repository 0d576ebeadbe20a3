"""`python -m flows`: the command line where the package's own script is not at hand."""

from __future__ import annotations

from flows.command_line import main

main()
