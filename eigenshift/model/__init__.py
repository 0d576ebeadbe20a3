"""The model under study: its files, its weights, its head, and running it over tokens.

Reads model folders and hub repositories; writes weight files only where an export asks for them.
What the states say about toxicity is `detection/` and `components/`; changing weights is
`patches/`.

    files.py               where a model's files are, and the digest of all of them
    loaded_files.py        which files decide what is loaded, and what is refused beside them
    wrapped_names.py       names of weights that a training wrapper left in a checkpoint
    loading.py             load it, keep it, have it to oneself
    kinds.py               how models read and write text
    classes.py             by which of transformers' classes
    description.py         which model it is and what it looks like
    heads.py               the output head: where it is, what happens around it
    layers.py              its trunk and its layers
    head_files.py          the head's weight straight from its file
    block_formats.py       what GGUF formats leave of a weight
    weight_files.py        checkpoints read and rewritten tensor by tensor
    safetensors_header.py  where a file's tensors lie
    parameter_names.py     names in a checkpoint against names in the model
    device_maps.py         which part of a divided model is where
    divided.py             a divided model's weights, read and replaced where they are
    weight_loading.py      weights brought to their place or places
    taps.py                where a layer's activations are read
    writers.py             linear layers that write into the residual stream
    encoding.py            texts as tokens, and what comes before a text's first word
    chat.py                a chat model's template around a user's message
    forward.py             tokens -> what enters the head at each position
    gradients.py           what every linear layer saw, and how an objective depends on it
    tokens.py              positions a model has, padding, BOS or EOS
    batching.py            batches that fit into memory
    resources.py           seconds and memory of a piece of work
    devices.py             where it runs
    stages.py              what the stage of this room is
"""
