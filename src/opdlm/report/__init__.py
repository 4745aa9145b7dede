"""Figures and the self-contained HTML report, from a run's files alone."""
