"""Studies on the embedded ARLM: which choices of the method matter, and by how much."""
