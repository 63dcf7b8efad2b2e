"""`python -m bfp`: the command line, where its script is not on PATH, as for code that was sent to a cluster."""

from bfp.cli import main

main()
