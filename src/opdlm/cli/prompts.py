"""`opdlm prompts`: prompts for a conversion, written by the model that is to be converted."""

from argparse import Namespace
from contextlib import closing
from pathlib import Path

from opdlm.cli.options import Parser, add_device, add_trust
from opdlm.cli.outputs import check_apart
from opdlm.cli.partial import WEIGHTS, check_output, finish, kept_lines, more_lines, partial_of
from opdlm.cli.progress import answering
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Let MODEL, an AR model, write the prompts that it is to be converted with, for those who have none. A chat model goes on
where its template lets the user speak (Magpie, arXiv 2406.08464); the front of a text is the prompt of a model without
a template. OUTPUT has one prompt a line, with the seed that it was drawn with.
"""
_EXAMPLES = (
    "opdlm prompts Qwen/Qwen3-0.6B --output prompts.jsonl",
    "opdlm prompts Qwen/Qwen3-0.6B --output prompts.jsonl --count 5000 --seed 7",
    "opdlm prompts Qwen/Qwen3-0.6B --output prompts.jsonl --resume",
)
_SAMPLING = ("count", "seed", "max_new_tokens", "temperature", "top_p")


def parser() -> Parser:
    """The command's flags."""
    made = Parser("prompts", _DESCRIPTION, _EXAMPLES, "MODEL --output FILE [--count N]")
    made.add_argument("model", nargs="?", help="folder, .gguf file or hub name of the AR model")
    made.add_argument("--output", metavar="FILE", help="a .jsonl file for the prompts")
    made.add_argument("--count", metavar="N", type=int, default=1000, help="different prompts (1000)")
    made.add_argument("--seed", metavar="N", type=int, default=0, help="of the first try; each has the next one (0)")
    made.add_argument("--temperature", metavar="T", type=float, default=1.0, help="of the sampling (1.0)")
    made.add_argument("--top-p", metavar="P", type=float, default=0.95, help="nucleus of the sampling (0.95)")
    made.add_argument("--max-new-tokens", metavar="N", type=int, default=256, help="longer messages are left out (256)")
    made.add_argument("--batch-size", metavar="N", type=int, default=32, help="prompts written at once (32)")
    add_device(made)
    made.add_argument("--resume", action="store_true", help="go on where an earlier call with this output ended")
    add_trust(made)
    return made


def run(arguments: Namespace) -> int:
    """Writes the file; after Ctrl-C `--resume` goes on."""
    if arguments.model is None or arguments.output is None:
        raise UsageError("no model or no output given; use opdlm prompts MODEL --output FILE")
    output = Path(arguments.output)
    check_apart({"--output": output}, (arguments.model,), (arguments.model,))
    check_output(output, arguments.resume)
    quiet_libraries()
    from opdlm.models.sampled_hash import sampled_hash
    from opdlm.sampling.api import load_autoregressive
    from opdlm.sampling.own_prompts import OwnPrompt, own_prompts

    model = load_autoregressive(arguments.model, arguments.device, arguments.dtype, pack=True)
    sampling = {name: getattr(arguments, name) for name in _SAMPLING}
    made_with = {"model": arguments.model, **sampling, WEIGHTS: sampled_hash(model.model)}
    known = [OwnPrompt(line["prompt"], line["seed"]) for line in kept_lines(output, made_with)]
    written = own_prompts(model, known=known, batch_size=arguments.batch_size, **sampling)
    console = make_console(stderr=True)
    try:
        with closing(more_lines(output, made_with)) as lines, answering(console, "prompts") as show:
            for count, found in enumerate(written, len(known) + 1):
                lines.write({"prompt": found.prompt, "seed": found.seed})
                show(arguments.model, count, arguments.count)
    except KeyboardInterrupt:
        console.print(f"the prompts so far are in {partial_of(output)}; go on with --resume", soft_wrap=True)
        raise
    finish(output)
    make_console().print(f"{arguments.count} prompts in {output}", markup=False, soft_wrap=True)
    return 0
