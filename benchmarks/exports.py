"""Exports held to their formats' own code: SDAR's modelling file, and llama.cpp's converter.

    python benchmarks/exports.py --sdar-code DIR --sdar-python FILE
    python benchmarks/exports.py --llama-cpp DIR --llama-python FILE --tokenizer DIR

Random models with the sizes that matter: a Qwen3 student with 151,680 rows and blocks of 4 and 8, whose mask token is
that of the engines; and a Llama with the tokenizer in DIR, which the converter has to know. `--sdar-code`: folder of an
SDAR model with modeling_sdar.py (JetAstra/SDAR, training/model/SDAR-4B-Chat), which transformers 4.52 reads; on a
machine without Triton `fused_linear_diffusion_cross_entropy.py` in it, a training loss, has to be replaced by an empty
class of that name. `--llama-cpp`: a folder with convert_hf_to_gguf.py, such as the package convert-hf-to-gguf has.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opdlm.checkpoints.export_gguf import convert_folder, find_converter
from opdlm.checkpoints.export_sdar import MASK_ID, export_sdar
from opdlm.checkpoints.load import load_ar_model
from opdlm.core.types import Geometry
from opdlm.evals.sdar.parity import PROMPTS, SdarCode, check_parity
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import find_or_add_mask_token

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
THRESHOLD = 0.3


def main() -> None:
    """Runs what is named on the command line, prints and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--sdar-code", "--llama-cpp", "--tokenizer"):
        parser.add_argument(name, type=Path)
    for name in ("--sdar-python", "--llama-python"):
        parser.add_argument(name, default=sys.executable)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if chosen.sdar_code:
        rows += sdar(SdarCode(chosen.sdar_code, chosen.sdar_python))
    if chosen.llama_cpp:
        rows += gguf(chosen.llama_cpp, chosen.llama_python, chosen.tokenizer)
    for row in rows:
        print(row)
    if rows:
        print(measuring.write("exports", rows))
    else:
        print("neither --sdar-code nor --llama-cpp is given: nothing to compare with")


def sdar(code: SdarCode) -> Iterator[dict[str, Any]]:
    """A row for each reading of the folder."""
    for size in (4, 8):
        tokenizer = words()
        torch.manual_seed(0)
        rope = {"rope_type": "default", "rope_theta": 1e6}
        config = Qwen3Config(**SIZES, vocab_size=MASK_ID + 11, head_dim=8, initializer_range=0.7, rope_parameters=rope)
        model = Qwen3ForCausalLM(config)
        student = BlockDiffusionModel(model, Geometry(size), find_or_add_mask_token(model, tokenizer))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "sdar"
            export_sdar(student, tokenizer, folder, dtype=torch.float32, threshold=THRESHOLD)
            found = check_parity(student, tokenizer, folder, THRESHOLD, code)
        for one in found:
            about = {"format": "sdar", "block_size": size, "threshold": THRESHOLD, **asdict(one)}
            yield row(one.largest_difference, one.states, about)


@torch.inference_mode()
def gguf(llama_cpp: Path, python: str, tokenizer: Path) -> Iterator[dict[str, Any]]:
    """A row for each type of the weights."""
    words_of = AutoTokenizer.from_pretrained(tokenizer)
    for dtype in ("float32", "float16"):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, vocab_size=len(words_of), tie_word_embeddings=True, initializer_range=0.3)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():  # and not the rotary angles, which no file has
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()
        with tempfile.TemporaryDirectory() as place:
            copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(Path(place) / "plain")
            words_of.save_pretrained(Path(place) / "plain")
            made = Path(place) / "model.gguf"
            convert_folder(find_converter(llama_cpp), Path(place) / "plain", made, dtype=dtype, python=python)
            read, own = load_ar_model(made)
        ids = [words_of(prompt)["input_ids"] for prompt in PROMPTS]
        same = sum(own(prompt)["input_ids"] == mine for prompt, mine in zip(PROMPTS, ids, strict=True))
        differences = [
            float((model(torch.tensor([one])).logits - read(torch.tensor([one])).logits).abs().max()) for one in ids
        ]
        about = {"format": "gguf", "dtype": dtype, "texts": len(ids), "same_tokens": same}
        yield row(max(differences), len(ids), about | {"tokenizer": tokenizer.name})


def row(difference: float, count: int, about: dict[str, Any]) -> dict[str, Any]:
    return {"metric": "largest difference of a logit", "unit": "1", "ours": difference, "n": count, "settings": about}


def words() -> PreTrainedTokenizerFast:
    """One token a character, and unused ones, until the next new token is the engines' mask."""
    used = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127))]
    vocabulary = {word: index for index, word in enumerate(used + [f"~{i}" for i in range(len(used), MASK_ID)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="?")


if __name__ == "__main__":
    main()
