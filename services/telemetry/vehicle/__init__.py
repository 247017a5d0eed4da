"""The vehicles of one host: records to HTTP."""
