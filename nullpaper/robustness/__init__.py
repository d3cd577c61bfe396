"""Attacks, corruptions, and accuracies under them with a mask per image.

Imports the ground, data, models, nullspace, synthesis and adapters.
"""
