"""Prompts, and the files and data sets that hold prompts and problems."""
