"""`opdlm export`: a converted model in the form that another engine loads."""

import sys
from argparse import Namespace
from pathlib import Path

from opdlm.cli.options import Parser, add_trust
from opdlm.cli.terminal import quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Write MODEL in the form that another engine loads, read it back and compare.
uno: the gate of a lossless model (converted with --lossless --window-form noise) as a peft adapter, which SGLang serves
beside the unchanged base model. sdar: a Qwen3 student with prediction same and context block as the folder that stock
SGLang and LMDeploy load, with a parity report. hf: the AR reading as a plain transformers folder, without code of ours:
of a lossless model its base, of a student with shifted prediction and causal context what it reads from left to right.
gguf: the same as a file for llama.cpp, made by its own converter.
What a format cannot hold is refused with the reason. docs/export.md says more.
"""
_EXAMPLES = (
    "opdlm export run --format uno --output uno-adapter",
    "opdlm export run/model --output uno-adapter --base Qwen/Qwen3-0.6B",
    "opdlm export run --format sdar --output sdar --dtype bfloat16",
    "opdlm export run --format hf --output plain",
    "opdlm export run --format gguf --output model.gguf --dtype float16 --llama-cpp ../llama.cpp",
)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("export", _DESCRIPTION, _EXAMPLES, "MODEL --format uno|sdar|hf|gguf --output DIR")
    made.add_argument("model", nargs="?", help="folder of a finished run, or of a converted model")
    made.add_argument(
        "--format", choices=("uno", "sdar", "hf", "gguf"), default="uno", help="what to write (default: uno)"
    )
    made.add_argument("--output", metavar="DIR", help="new folder; gguf: new file")
    made.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="sdar, hf, gguf: of the weights (default: float32, as they were trained)",
    )
    made.add_argument("--base", metavar="MODEL", help="uno: name or path of the base (default: as MODEL says)")
    made.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="sdar: SGLang unmasks above it (default: MODEL's own)",
    )
    made.add_argument(
        "--block-size", type=int, metavar="N", help="sdar: MODEL is an AR model, to be the student that it begins as"
    )
    made.add_argument("--sdar-code", metavar="DIR", help="sdar: compare with SDAR's own modeling_sdar.py in DIR")
    made.add_argument(
        "--sdar-python", metavar="FILE", default=sys.executable, help="sdar: the Python for it (default: this one)"
    )
    made.add_argument("--llama-cpp", metavar="DIR", help="gguf: a copy of llama.cpp, with its convert_hf_to_gguf.py")
    add_trust(made)
    return made


def run(arguments: Namespace) -> int:
    """Writes the folder, prints how it is served."""
    if arguments.model is None or arguments.output is None:
        raise UsageError("no model or no output given; use opdlm export MODEL --format uno|sdar|hf|gguf --output DIR")
    quiet_libraries()
    {"uno": _uno, "sdar": _sdar, "hf": _hf, "gguf": _gguf}[arguments.format](arguments)
    return 0


def _uno(arguments: Namespace) -> None:
    from opdlm.checkpoints.export_uno import export_uno
    from opdlm.evals.original import original_of
    from opdlm.sampling.api import load

    model = load(arguments.model, device="cpu").model
    base = arguments.base or str(original_of(arguments.model, "--base"))
    folder = export_uno(model, base, arguments.output)
    print(f"the adapter is {folder}; serve it with:")
    print(f"  python -m sglang.launch_server --model-path {base} --speculative-algorithm UNO \\")
    print(f"    --uno-lora-path {folder} --speculative-num-draft-tokens {getattr(model, 'window', 0) + 1}")


def _sdar(arguments: Namespace) -> None:
    from opdlm.evals.exports import to_sdar
    from opdlm.evals.sdar.parity import REPORT, SdarCode

    code = None
    if arguments.sdar_code is not None:
        if not arguments.trust_remote_code:
            raise UsageError(
                f"the code in {arguments.sdar_code} would run with your rights; add --trust-remote-code if you trust it"
            )
        code = SdarCode(Path(arguments.sdar_code), arguments.sdar_python)
    made = to_sdar(
        arguments.model,
        arguments.output,
        dtype=arguments.dtype,
        threshold=arguments.threshold,
        block_size=arguments.block_size,
        code=code,
    )
    for one in made.readings:
        print(
            f"parity, {one.reading}: {one.same_texts} of {one.texts} texts the same, logits of {one.states} states "
            f"differ by at most {one.largest_difference:.2g} of {one.largest_logit:.3g}"
        )
    print(f"the folder is {made.folder} (report: {REPORT}); serve it with:")
    print(f"  python -m sglang.launch_server --model-path {made.folder} --trust-remote-code --dtype bfloat16 \\")
    print(f"    --dllm-algorithm LowConfidence --dllm-algorithm-config {made.folder}/sglang.yaml")
    print(f"  lmdeploy serve api_server {made.folder} --backend pytorch --trust-remote-code \\")
    print(f"    --dllm-block-length {made.block_size} --dllm-unmasking-strategy low_confidence_dynamic \\")
    print(f"    --dllm-confidence-threshold {made.threshold}")


def _hf(arguments: Namespace) -> None:
    from opdlm.evals.exports import to_hf

    difference = to_hf(arguments.model, arguments.output, dtype=arguments.dtype)
    print(f"the folder is {arguments.output}; read back, its logits differ by at most {difference:.2g}")


def _gguf(arguments: Namespace) -> None:
    from opdlm.evals.exports import to_gguf

    difference = to_gguf(arguments.model, arguments.output, dtype=arguments.dtype, llama_cpp=arguments.llama_cpp)
    print(f"the file is {arguments.output}; read back, its logits differ by at most {difference:.2g}")
