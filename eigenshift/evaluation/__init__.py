"""What a patch does and what it costs, with intervals; trials, and the gate.

Reads scores, fluency and patches; writes token shifts, control draws, fluency, evaluations, trials
and tables of arms. Deciding is `gate.py`'s; recording the decision `ledger/releases.py`'s.

    fluency.py              perplexity and divergence on neutral and in-domain text
    text_allotment.py       how many texts for evaluation each shard gives
    token_shifts.py         which tokens a patch makes rarer
    control_draws.py        a patch against random choices of components or directions
    grid.py                 perplexity and divergence of many edits in closed form
    tuning.py               a grid of trials screened, a few confirmed
    likelihood_ratios.py    how much likelier an edited model is to say what the base said
    predicted_rates.py      its toxicity rate, foretold from that
    predicted_trials.py     the same for the trials of a search
    trials.py               which of them are on the front
    intervention_choice.py  which of several interventions is judged
    comparison.py           every metric of every arm
    degeneration.py         repetition, sameness, emptiness, refusals
    confirmation.py         the judged arm against the base again, on long continuations
    arm_pairs.py            every arm against every other
    agreement.py            how far scorers agree
    scorer_measurement.py   how well the scorers themselves do
    arm_table.py            one row per arm
    metric_table.py         a metric's value by arm and slice
    slices.py               parts of the prompts
    bootstrap.py            intervals
    power.py                how many prompts show which effect
    evidence.py             what is too small for what, before a run
    caveats.py              what the finished numbers say against themselves
    permutation.py          a paired test
    survival.py             what is left of a patch in GGUF formats
    reload_check.py         whether the exported model is what was measured
    headlines.py            what finished tables and facts say in one number
    gate.py                 whether a patch may be released
    capability.py           whether it left the model's capability, by benchmark questions
    stages.py               what the stages of this room are
"""
