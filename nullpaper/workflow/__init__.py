"""Runs of notebooks, stored results, figures and tables with their origin, sweeps.

Imports the ground and data; knows no science.
"""
