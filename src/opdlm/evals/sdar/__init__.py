"""Whether an exported SDAR folder says what the model says: read and decoded as the engines do."""
