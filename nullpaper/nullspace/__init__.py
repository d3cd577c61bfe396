"""What a ViT ignores exactly: the nullspace of its patch embedding and the shift that LayerNorm removes.

Imports the ground, data and models.
"""
