"""The same networks by lipray and by its peers: solvers, closed forms, and published figures, in one run.

Run by ``make bench-peers``; ``__main__.py`` says how. Every row is measured in a process of its own.
"""
