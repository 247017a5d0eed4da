"""Figures that are measured on real processes; each module is a command."""
