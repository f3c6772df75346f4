"""Does an output depend on inputs that come after it?"""
