"""Cohorts that need no download: drawn tissue, and slides composed of real patches."""
