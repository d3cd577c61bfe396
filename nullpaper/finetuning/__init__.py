"""Training: one loop, the methods of papers A and B with their controls, and what a step costs.

Imports all that is below fooling and studies.
"""
