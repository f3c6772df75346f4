"""Which parameters does a loss not teach, and what do they cost?"""
