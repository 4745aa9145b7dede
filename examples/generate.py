"""Decode a converted model from Python: text at once, a batch of ids, and the drafts of a text while it is written.

python examples/generate.py MODEL "a prompt"
"""

import sys

import torch

import opdlm
from opdlm.sampling.api import DiffusionLM


class Drafts:
    """Prints every draft: the tokens that are fixed so far, `_` where nothing is."""

    def __init__(self, model: DiffusionLM) -> None:
        self.tokenizer, self.mask_token_id = model.tokenizer, model.tokens.mask_token_id

    def put_draft(self, ids: torch.Tensor) -> None:
        print("".join("_" if i == self.mask_token_id else self.tokenizer.decode([i]) for i in ids.tolist()))

    def put(self, ids: torch.Tensor) -> None:
        print(self.tokenizer.decode(ids, skip_special_tokens=True))

    def end(self) -> None:
        print("(the end)")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit('give a model and a prompt: python examples/generate.py MODEL "a prompt"')
    path, prompt = sys.argv[1:]
    model = opdlm.load(path)
    print(model.write(prompt, max_new_tokens=64, decoding="dynamic:0.9"))

    ids = [model.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {prompt}")]
    output = model.generate(ids, max_new_tokens=64, temperature=0.7, seed=1)
    print(model.decode(output), f"{output.tokens_per_forward:.2f} tokens a forward")

    model.generate(ids[:1], max_new_tokens=32, streamer=Drafts(model))


if __name__ == "__main__":
    main()
