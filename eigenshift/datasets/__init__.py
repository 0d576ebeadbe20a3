"""Datasets: files in their original schemas -> one common record (`schemas.SAMPLES`).

Reads the files of sources; writes records and samples. Every record becomes a row of samples or of
rejected rows, so rows read = samples + rejected rows for each file. Choosing prompts from samples
is `generation/`'s.

    reading.py     one file of a source -> records and rejected rows
    ingestion.py   the records of all files -> samples without repeats
    records.py     what a record is, and what is wrong with a bad one
    screening.py   a text judged by itself, and against those seen before
    labels.py      labels of columns that the settings name, and what stops a run
    label_words.py words that data sets write as labels
    spooling.py    records and shards written as they come
    language.py    the language of a text, by script
    stages.py      what the stages of this room are

One module per format: jigsaw.py, toxicn.py, toxic_spans.py, real_toxicity_prompts.py, sentences.py,
paragraphs.py, huggingface.py. containers.py tells what a file is and has it read by delimited.py,
json_lines.py or tables.py; column_mapping.py serves the formats whose columns the settings name.
"""
