"""Which loss reaches the parameters of a router?"""
