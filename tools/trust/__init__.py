"""Can the package be trusted? Kills, mutated input, full disks, an hour of training: `make trust`.

    python -m tools.trust                                   all but the soak, in the long form
    python -m tools.trust kills count=200 seed=0            training killed at random moments, then resumed
    python -m tools.trust mutations count=10000 seed=0      mutated files and settings against an independent oracle
    python -m tools.trust mutations reader=h5 only=123      one mutant again; what it did is printed
    python -m tools.trust places                            disk full, folder read-only, folder deleted
    python -m tools.trust soak minutes=60                   memory, handles and step time of a long training

Each part replaces its own figures in docs/trust.json; docs/trust.md is made from that file. The exit status is 1 if
anything was lost, wrong, raw or hung.
"""
