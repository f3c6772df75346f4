"""How does a loss scale with each axis of its batch?"""
