"""Reports: the page of a run, and what it is made of.

    blocks      what a driver says came out, as plain values (in results.json)
    numbers     how figures are written, on the page and in the terminal
    headline    what a run came to, in one line
    history     what happened, from the run's events
    figures     charts (SVG), drawn from blocks
    pictures    PNGs that drivers put beside their results: slices, overlays, maps of tokens
    markup      HTML made of elements, escaped by construction
    page        one self-contained HTML page

Importing this package imports neither numpy nor matplotlib: `bfp show` needs only the first four.
"""

from bfp.reports.page import write_page

__all__ = ["write_page"]
