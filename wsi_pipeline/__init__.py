"""Patch stores in, reports out."""

__version__ = "0.1.0"
