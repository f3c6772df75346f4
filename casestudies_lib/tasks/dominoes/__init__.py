"""Dominoes in tricks: the game and its solver, positions as tokens, and solved endgames as data and examples."""
