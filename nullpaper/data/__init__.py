"""Data sets as splits and batches of pixels in [0, 1], fetched once and checked on every load.

Imports the ground (errors, files, statistics) alone.
"""
