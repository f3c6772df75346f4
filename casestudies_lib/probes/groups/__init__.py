"""Do the errors of a regression come from a few groups?"""
