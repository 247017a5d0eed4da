"""The product in one thread: its real code against a Kafka, a Postgres, disks and a network in memory, with a virtual clock.

One seeded scheduler decides what happens next and what breaks, so a seed is a run, and the same seed is the same run.
"""
