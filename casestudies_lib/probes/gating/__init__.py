"""Do the gates of a model learn, or only decay?"""
