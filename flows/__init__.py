"""What a person starts: Prefect flows and the command line.

Settings in, tasks called in order, a summary out. No tensors, no SQL, no paths built by hand.
Importing this package sets Prefect's environment, which must happen before Prefect is imported.
"""

from flows.prefect_environment import prepare_environment

prepare_environment()
