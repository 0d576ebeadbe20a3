"""EigenShift: find, damp and audit what makes a language model generate toxicity.

Method: Shaik et al., NeurIPS 2025 (arXiv 2509.16660). This package is the library: plain
functions over artifacts, without Prefect. `tasks/` wraps them, `flows/` chains them.
"""

__version__ = "0.1.0"
