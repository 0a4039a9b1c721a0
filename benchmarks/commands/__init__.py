"""The command line of the benchmarks, a module for each group of commands.

They import what they measure with when they are called: `--help` imports none of it.
"""
