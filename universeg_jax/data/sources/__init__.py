"""Public datasets, one short file each, which lists them in SOURCES; `source.py` reads them.

`verified` sources were built from their publisher's own files; the layout of the others is that of the documentation.
"""
