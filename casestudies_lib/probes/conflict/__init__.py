"""Do the losses of one model pull its parameters apart?"""
