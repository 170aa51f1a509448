"""Patch stores in, reports out."""

__version__ = "0.2.0"
