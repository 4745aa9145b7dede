"""The one sampler that serves rollouts, evaluation, users and the command line."""
