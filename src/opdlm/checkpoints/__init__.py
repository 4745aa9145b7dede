"""Models on disk: load and save, the model card, and the model file that makes a folder work without opdlm."""
