"""The command line: parse, call, print. Everything that is done is done below; what a user reads is written here.

    main       exit codes and messages: the one place that turns errors into text
    app        the commands
    output     text and JSON, two renderings of one result
    display    a run as it goes on: live on a terminal, plain lines elsewhere
    jobs       plan, run, say what to do next: for `submit` and `demo`
    clusters   the same for runs on a cluster
    driving    `bfp drive`: what a target runs on a cluster
    runs       finding runs, and what they are at
    blocks     a run's results in the terminal
    demo       `bfp demo`
    doctor     `bfp doctor`

`bfp --help`, `validate`, `init`, `schema` and `submit --dry-run` import neither torch nor ray: commands import what
they need when they are called.
"""

from bfp.cli.main import main

__all__ = ["main"]
