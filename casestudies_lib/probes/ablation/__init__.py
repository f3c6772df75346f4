"""Does an ablation flag change what it should, and nothing else?"""
