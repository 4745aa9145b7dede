"""What runs inside the child processes of `sandbox.py`: standard library and relative imports only.

The same files are imported as `opdlm.evals.sandboxed` by the parent and as `sandboxed` by the child.
"""
