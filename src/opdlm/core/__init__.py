"""Pure functions of tensors: what the paper says, checkable against the paper alone."""
