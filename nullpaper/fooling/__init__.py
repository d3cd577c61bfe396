"""What a nullspace lets one do to a network: look-alikes, watermarks, moved explanations (paper C).

Imports all that is below it, not finetuning.
"""
