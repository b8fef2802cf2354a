"""One file per command: its options, whose documentation is its help text, and `run`, which does it. Parsing and exit codes are in `cli.py`.

The settings of a command's method are added to its options from the method itself.
"""
