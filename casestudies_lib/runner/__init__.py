"""Runs chapters, keeps their results, and turns them into a site; the command line is `casestudies_lib.cli`."""
