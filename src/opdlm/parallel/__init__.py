"""The only room that knows of several processes."""
