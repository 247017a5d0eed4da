"""A package, for there is a test_store among the unit tests too."""
