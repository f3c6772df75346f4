"""Does a training loop move what it should, as often as it should?"""
