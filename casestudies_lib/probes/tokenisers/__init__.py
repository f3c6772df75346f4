"""Do positions of equal index in two tokenizations mean the same characters?"""
