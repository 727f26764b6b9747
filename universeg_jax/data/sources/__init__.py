"""Public datasets, one short file each: SOURCES lists what it describes. `source.py` says how they are read.

`verified` sources were built from their publisher's own files; the layout of the others is that of their documentation.
"""
