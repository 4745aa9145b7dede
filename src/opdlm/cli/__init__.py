"""The command line: one file per command, which wires the layers together."""
