"""Drawing: what a chart shows, what it says in words, the numbers behind it.

Takes plain rows and gives SVG and PNG. Asks no store and no audit for its rows: that is
`reporting/`, next to which this room could stand alone.

    overview_charts.py   what a patch brings and costs: the picture a report opens with
    run_charts.py        charts of a run
    arm_charts.py        charts of arms and of trials
    lineage_pictures.py  what was made from what, as a drawing of boxes and lines
    labels.py            names beside points, names of axes
    rendering.py         a chart as inline SVG or as PNG
"""
