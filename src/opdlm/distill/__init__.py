"""On-policy distillation: prompts, rollout, teacher targets, the training step and its loop."""
