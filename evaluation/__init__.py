"""Checkpoints x features -> numbers, intervals, tests, pictures: what trained models are worth."""
