"""The proof: a fleet of its own with a ledger, faults, and a check of what was stored. Imports nothing of the product."""
