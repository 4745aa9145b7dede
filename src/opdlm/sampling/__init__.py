"""The one sampler that serves rollouts, evaluation, the command line and the server."""
