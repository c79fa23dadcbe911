"""The benchmark of the service on this machine: time per stage, throughput, memory, and shares of the machine's limits.

All figures come from one run, side by side, because absolute times drift from machine to machine and from hour to hour.
"""
