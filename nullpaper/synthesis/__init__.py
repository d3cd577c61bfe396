"""What a ViT ignores approximately: noise learned behind its patch embedding, its controls and its influence.

Imports the ground, data and models.
"""
