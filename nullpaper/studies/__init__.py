"""What notebooks share: finetuning trials, their contrasts, and verdicts on the papers' claims.

Imports everything but the command line.
"""
