"""A server with the OpenAI API: one thread that writes, any number of clients that come and go."""
