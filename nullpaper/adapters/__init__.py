"""LoRA and LNLoRA (paper B): branches beside frozen layers, injected, merged, saved and loaded.

Imports the ground, data and models.
"""
