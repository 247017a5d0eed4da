"""Tachograph's services: vehicle, producer and consumer."""

__version__ = "0.1.0"
