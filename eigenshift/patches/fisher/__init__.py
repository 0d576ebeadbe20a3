"""EigenShift in the Fisher metric: rank-one changes of weights by benefit per cost.

Reads head states, continuations, neutral and harmless texts; writes the change of the model and a
table of its terms. Which intervention uses it is `interventions/fisher_components.py`'s.

    whitening.py    singular triples of the whitened gradient, and how far to go along them
    evidence.py     toxic positions, and the texts of the metric
    rounds.py       steps, each from the model as edited so far, until the budget is spent
    toxic_gradients.py how the toxic tokens depend on the head's output
    head_study.py   of the head alone, in closed form on cached states
    deep_study.py   of every layer that writes into the residual stream, by backward passes
    ridge.py        which ridge the metric needs, found on prompts that a step was not made from
    terms.py        each term of the result: what it brings, what it costs, what it says
    table.py        the stage's work
"""
