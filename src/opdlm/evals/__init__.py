"""Tasks, answer extraction, grading, and the execution of generated code in a child process."""
