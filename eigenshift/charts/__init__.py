"""Drawing: what a chart shows, what it says in words, the numbers behind it.

Takes plain rows and gives SVG and PNG. Asks no store and no audit for its rows: that is
`reporting/`, next to which this room could stand alone.

    run_charts.py  charts of a run
    arm_charts.py  charts of arms and of trials
    labels.py      names beside points
    rendering.py   a chart as inline SVG or as PNG
"""
