"""What every other room may use and nobody else's business: errors, schemas, names, plain arrays.

Reads and writes nothing. Knows neither storage nor models nor settings; whatever needs one of them
belongs in its room.

    errors.py     every exception we raise on purpose
    schemas.py    the Arrow schema of every table
    arrays.py     types of the arrays that are passed around
    auroc.py      how well scores tell two classes apart
    arms.py       names of the arms every run compares
    findings.py   what doctor says of one thing
    machine.py    what this machine gives a process
    locations.py  paths and URLs as people write them
    suggestions.py  what was probably meant by a name
    durations.py  times and durations as a person reads them
    text.py       the form in which texts are compared
"""
