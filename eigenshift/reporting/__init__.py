"""What people read: outcomes for terminals and machines, figures, HTML.

Reads run records and the audit; writes HTML and pictures. Charts themselves are drawn by
`charts/`; computing what they show belongs in the room of the number.

    outcomes.py           what a run hands to people and machines
    benchmark_tables.py   benchmark questions, and what `benchmark` found
    survival_tables.py    what is left of a patch in GGUF formats
    history_tables.py     runs and releases for a narrow screen
    stage_tables.py       what each stage of a run took
    planning.py           how many prompts show which effect
    component_tables.py   what the judged patch consists of
    arm_tables.py         a comparison's arms
    figures.py            a run's rows -> its charts
    story.py              what happened, in a sentence; the gate as a traffic light
    lineage.py            what was made from what, as a picture; sources, patches
    pages.py              what every page is made with: templates, tables, charts in both widths
    html_report.py        one run as a page
    comparison_report.py  two runs side by side
    templates/            of the pages
"""
