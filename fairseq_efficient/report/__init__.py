"""One HTML design for every system's report: :mod:`page` renders sections made of :mod:`parts`.

A page is one file: style, script and figures are inside, nothing is fetched, and all text is escaped.
"""
