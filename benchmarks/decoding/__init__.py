"""The parts of `decode.py`: who writes the responses, and what is shown of them."""
