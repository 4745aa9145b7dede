"""`opdlm doctor`: everything that can be known before a training is started."""

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console

from opdlm.cli import plan
from opdlm.cli.options import Parser, add_settings, add_trust, given
from opdlm.cli.terminal import duration, make_console, print_json, quiet_libraries, size
from opdlm.config import ConvertSettings, settings_from
from opdlm.errors import OpdlmError, UsageError

_DESCRIPTION = """
Look at MODEL before any training: can a mask turn it into a block-diffusion model (if not, why, and exit code 2), does
the adapted model equal the original, where does the mask token go, what do training and decoding cost in memory and on
disk, which command to type, and how fast is a training step on this machine. With --prompts these are checked too, as
`opdlm convert` does. Findings are printed as they come. With --lossless the same is asked of a lossless conversion: how
large is the gate that drafts, and what does it cost. With --plan no weights are loaded: MODEL may be a folder with a
config.json alone, or a named shape (qwen3-0.6b, -1.7b, -4b, -8b), and the answer is what a run on several GPUs takes.
"""
_EXAMPLES = (
    "opdlm doctor Qwen/Qwen3-0.6B",
    "opdlm doctor ./my-model --prompts prompts.jsonl --json",
    "opdlm doctor Qwen/Qwen3-0.6B --lossless",
    "opdlm doctor qwen3-4b --plan --gpus 8 --kind h100",
)
_CHECKED = {"block_size", "prompts", "prompts_column", "prompts_config", "prompts_split", "prompts_revision"}
_BUDGETS = (1_000_000, 50_000_000)  # response tokens; the paper's conversions take 48 to 76 million


def parser() -> Parser:
    """The command's flags."""
    made = Parser("doctor", _DESCRIPTION, _EXAMPLES, "MODEL [options]")
    made.add_argument("model", nargs="?", help="folder, .gguf file or hub name of the autoregressive model")
    made.add_argument(
        "--lora-rank", type=int, metavar="N", help="rank of the LoRA estimate, or of the gate (default: 32)"
    )
    made.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="memory: tokens of a prompt (default: the longest of --prompts, else 256); prompts are cut to that",
    )
    made.add_argument(
        "--lossless", action="store_true", help="ask about a lossless conversion; its speed is not measured"
    )
    made.add_argument("--response-tokens", type=int, metavar="N", help="memory: of a response (default: the recipe's)")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    add_trust(made)
    made.add_argument("--no-speed", action="store_true", help="leave the measurement of speed out")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    plan.add_flags(made)
    add_settings(
        made,
        ConvertSettings,
        title="checked as by opdlm convert",
        without=ConvertSettings.model_fields.keys() - _CHECKED,
        by_recipe={"block_size"},
    )
    return made


def run(arguments: Namespace) -> int:
    """0 if the model can be converted; an obstacle is an error."""
    if arguments.model is None:
        raise UsageError("no model given; name a folder or a hub model: opdlm doctor MODEL")
    for name in ("lora_rank", "prompt_tokens", "response_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1; give a larger one")
    changes = {name: value for name, value in given(arguments, ConvertSettings).items() if name in _CHECKED}
    plan.check_flags(arguments, changes)
    if arguments.plan:
        return plan.run(arguments)
    if "prompts" in changes and arguments.prompt_tokens is not None:
        changes["prompt_tokens"] = str(arguments.prompt_tokens)
    settings_from(ConvertSettings, changes)  # a wrong one is an error before any model is loaded
    if arguments.lossless and "block_size" in changes:
        raise UsageError("a lossless model has no blocks; leave out --block-size")
    console, found = make_console(), dict[str, Any]()
    if not arguments.json:
        _print(console, [("model", arguments.model)])  # at once: the libraries take seconds to load
    quiet_libraries()
    from opdlm.distill.preflight import Question, examine
    from opdlm.distill.preflight_lossless import examine_lossless

    question = Question(
        model=arguments.model,
        changes=changes,
        lora_rank=arguments.lora_rank,
        prompt_tokens=arguments.prompt_tokens,
        response_tokens=arguments.response_tokens,
        device=arguments.device,
        speed=not arguments.no_speed,
    )
    try:
        for part in (examine_lossless if arguments.lossless else examine)(question):
            found |= part
            if not arguments.json:
                _print(console, _lines(part, found))
    except OpdlmError as error:
        if arguments.json:
            print(json.dumps({"model": arguments.model, "convertible": False, "reason": str(error)}))
        raise
    if arguments.json:
        print_json(found)
    return 0


def _print(console: Console, lines: Iterable[tuple[str, str]]) -> None:
    for name, text in lines:
        console.print(f"{name:18}  {text}", markup=False, soft_wrap=True)


def _lines(part: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what was found) of a part of the findings; `found`: all so far."""
    if "parameters" in part:
        yield "parameters", f"{part['parameters']:,}"
        yield "convertible", "yes, as far as its config tells"
        named = part["recipe"] == "lossless"
        yield "recipe", part["recipe"] if named else f"{part['recipe']}, by the number of parameters"
    if "weights" in part:
        yield "weights", part["weights"]
    if "prompts" in part:
        yield "prompts", part["prompts"]
    if "longest_prompt" in part:
        yield "longest prompt", f"{part['longest_prompt']:,} tokens; all fit with their responses"
    if "architecture" in part:
        yield "architecture", part["architecture"]
        yield "vocabulary, context", f"{part['vocabulary']:,} tokens, {part['context'] or 'no limit'}"
        if mask := part.get("mask_token"):
            yield "mask token", f"{mask['token']}, id {mask['id']}: {mask['plan']}"
        yield "end token", _ends(part["end_tokens"])
        yield "chat template", "yes" if part["chat_template"] else "none: give prompts as plain text, not as messages"
    if "identity_difference" in part:
        yield "identity check", f"passed, largest difference of a logit {part['identity_difference']:.2g}"
        yield "mask honoured", "yes: with a bidirectional mask the model looks ahead, with a causal one it does not"
    if "lossless" in part:
        yield "lossless", "yes: a gate drafts, and the model's own weights, which do not change, check every draft"
    if "gate" in part:
        yield from _gate_lines(part, found["parameters"])
    elif "memory" in part:
        yield from _memory_lines(part)
    if "command" in part:
        yield "to convert it", part["command"]
        if "prompts" not in found:
            yield "no prompts yet", f"opdlm prompts {found['model']} --output PROMPTS.jsonl"
        if not part["command_fits"]:
            yield "", "even so it does not fit: take a larger machine, a smaller model, or shorter responses"
    if "speed" in part:
        yield "time", _time(part["speed"], found["training_fits"])


def _ends(tokens: list[str]) -> str:
    if tokens:
        return ", ".join(tokens)
    return "none: only the longest response ends a text; set eos_token in tokenizer_config.json"


def _memory_lines(part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = part["memory"]
    shape = "{rows} rows of {prompt} + {response} tokens".format_map(memory["shape"])
    activations = size(memory["activation_bytes"])
    yield "full training", f"{size(memory['training_bytes'])}, {activations} of them activations of {shape}"
    for way in part["ways"]:
        if "--lora-rank" not in way["flags"]:
            flags = " ".join(f"{flag} {value}".strip() for flag, value in way["flags"].items())
            yield "", f"{size(way['bytes'])}{'' if way['fits'] else ', does not fit'}: {flags}"
    yield f"LoRA, rank {memory['lora_rank']}", size(memory["lora_bytes"])
    token = size(memory["cache_bytes_per_token"])
    if memory["lora_bytes"] >= memory["training_bytes"]:
        yield "", "LoRA saves nothing here: a checkpoint holds a merged copy of the weights, and small models have few"
    yield "decoding", f"{size(memory['decoding_bytes'])} and {token} for each token of text"
    yield "disk", f"{size(memory['disk_bytes'])} for the run ({size(memory['lora_disk_bytes'])} with LoRA)"
    yield _device(part)


def _gate_lines(part: dict[str, Any], parameters: int) -> Iterator[tuple[str, str]]:
    gate, memory = part["gate"], part["memory"]
    share = f"{gate['parameters'] / parameters:.1%} of the model's" if parameters else "beside the model's own"
    yield "gate", f"rank {gate['rank']} on {gate['layers']} linear layers, windows of {gate['window']} drafts"
    yield "", f"{gate['parameters']:,} weights, {share}; {size(gate['bytes'])} with --adapter-only"
    shape = "{rows} rows of {prompt} + {response} tokens".format_map(memory["shape"])
    fixed = f"{size(memory['weights_bytes'])} the model, {size(4 * gate['bytes'])} the gate with gradients and AdamW"
    yield (
        "training",
        f"{size(memory['training_bytes'])}: {fixed}, {size(memory['activation_bytes'])} activations of {shape}",
    )
    token = size(memory["cache_bytes_per_token"])
    yield "decoding", f"{size(memory['decoding_bytes'])} and {token} for each token of text"
    alone = size(memory["adapter_only_disk_bytes"])
    yield "disk", f"{size(memory['disk_bytes'])} for the run ({alone} with --adapter-only)"
    yield _device(part)


def _device(part: dict[str, Any]) -> tuple[str, str]:
    free = "unknown" if part["free_bytes"] is None else size(part["free_bytes"])
    return "device", f"{part['device']}, {free} free"


def _time(speed: dict[str, Any] | None, fits: bool) -> str:
    if speed is None:
        return "not measured" if fits else "not measured: full training does not fit"
    rates = f"{speed['tokens_per_second']:,.0f} ({speed['slowest']:,.0f} to {speed['fastest']:,.0f})"
    fast, slow = ([budget / speed[rate] for budget in _BUDGETS] for rate in ("fastest", "slowest"))
    spans = [f"{duration(low)} to {duration(high)}" for low, high in zip(fast, slow, strict=True)]
    return (
        f"{rates} response tokens/s in {speed['steps']} steps of {speed['rows']} rows of {speed['prompt_tokens']} + "
        f"{speed['response_tokens']} tokens, one token a denoising step, {speed['rollout_share']:.0%} of it rollouts. "
        f"At that speed a million tokens take {spans[0]}, 50 million (the paper's budget) {spans[1]}. Expect up to "
        "twice that with long responses, and half with a student that commits several tokens a step"
    )
