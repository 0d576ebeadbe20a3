"""What detects toxicity: activations of labelled texts, and what single units and layers know.

Reads samples and a model; writes activations, their summaries and the statistics of neurons and
layers. What *generates* toxicity is `components/`.

    activations.py         texts -> one pooled value per text, layer and unit, as Parquet
    pooling.py             one forward pass, pooled over real tokens
    neuron_summaries.py    a shard's values sorted by class
    neuron_statistics.py   every unit judged, from the summaries
    neuron_stability.py    which units stay among the best in resamples
    layer_statistics.py    every layer judged by a probe
    layer_transfers.py     probes and units carried from dataset to dataset
    labelled_layers.py     one layer's values beside their labels
    probes.py              ridge probes in closed form, cross-validated
    ranked_units.py        AUROC and average precision of many units, by sorting few samples
    counting.py            the same by counting many samples, in compiled loops
    ranking.py             values as ordered integers, and one unit's placements and folds
    stages.py              what the stages of this room are
"""
