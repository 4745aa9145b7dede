"""What `real_model.py` is made of: the model, the prompts, the arms, the conversion, the exam, the summary."""
