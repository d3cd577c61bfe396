"""Vision Transformers as pixels -> embed -> encode -> logits: loading, saving, predictions, shipped checkpoints.

Imports the ground and data.
"""
