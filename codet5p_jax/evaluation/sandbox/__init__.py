"""Runs programs that models wrote, which may do anything, without harm: `pool.run_programs`.

Nothing is imported here: part of these modules runs in a process that has little else.
"""
