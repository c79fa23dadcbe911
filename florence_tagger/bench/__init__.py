"""How fast the service is on this machine: time per stage, throughput, memory, and shares of the machine's limits.

Everything is measured in one run, side by side, because absolute times drift from machine to machine and from hour to
hour.
"""
