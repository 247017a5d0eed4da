"""Figures that the product is to reach, measured on the real parts. Each module is a command, and prints what it measured."""
