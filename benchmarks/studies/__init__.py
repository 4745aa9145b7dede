"""Studies on the embedded AR model: which choices of the method matter, and by how much."""
