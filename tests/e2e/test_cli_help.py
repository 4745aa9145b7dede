"""Help is instant, complete and made from the settings."""

import subprocess
import sys

import pytest

import opdlm
from opdlm.cli import convert, generate, processor, serve
from opdlm.cli.main import COMMANDS, main
from opdlm.cli.options import given
from opdlm.config import ConvertSettings, GenerationSettings, ServeSettings

HEAVY = {"torch", "transformers", "datasets", "numpy", "tokenizers", "accelerate"}


def test_help_imports_nothing_heavy():
    """Without it `opdlm --help` would make people wait for torch."""
    code = f"""
import sys
from opdlm.cli.main import COMMANDS, main
main(["--help"])
main(["--version"])
main(["convrt"])
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
    main([name, "--nothing-of-this-name"])
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count("error: unknown flag --nothing-of-this-name") == len(COMMANDS)


def test_the_installed_command():
    """Without it the package could come without its command."""
    words = [sys.executable, "-m", "opdlm.cli.main", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"opdlm {opdlm.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    """Without it a command would have flags and no purpose."""
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count(f"  opdlm {name}") >= 2  # examples
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    ("command", "kind"), [(convert, ConvertSettings), (generate, GenerationSettings), (serve, ServeSettings)]
)
def test_every_setting_is_in_the_help(command, kind):
    """Without it a new setting would work from a recipe only, or be shown without a word about it."""
    text = " ".join(command.parser().format_help().split())
    for name, field in kind.model_fields.items():
        if name == "model":
            continue
        inner = getattr(field.annotation, "model_fields", None)
        flags = [f"{name}.{part}" for part in inner] if inner else [name]
        for flag in flags:
            assert "--" + flag.replace("_", "-") in text
        if field.description:
            assert " ".join(field.description.split()) in text


def test_only_what_was_typed_is_passed_on():
    """Without it defaults would replace a recipe's values."""
    words = "m --optimiser.learning-rate 1e-3 --no-rest-bucket --lora 4 --top-k none --block-size=8".split()
    assert given(convert.parser().read(words), ConvertSettings) == {
        "model": "m",
        "optimiser": {"learning_rate": "1e-3"},
        "rest_bucket": False,
        "lora_rank": "4",
        "top_k": None,
        "block_size": "8",
    }


def test_launchers_can_start_the_module():
    """Without it `python -m opdlm`, which launchers of several processes need, would not exist."""
    done = subprocess.run([sys.executable, "-m", "opdlm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"opdlm {opdlm.__version__}"


def test_the_processor_is_shared_before_torch_loads():
    """Without it the choice would come too late: torch reads the policy and the number of threads when it loads."""
    code = (
        "import sys, opdlm.cli.main as m\n"
        "m.processor.share = lambda: print('torch' in sys.modules)\n"
        "m.main(['doctor', 'no such model'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "False" in done.stdout


@pytest.mark.parametrize(
    ("idle", "given", "expected"),
    [
        (1.0, {}, {}),
        (0.5, {}, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}),
        (0.0, {}, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}),
        (0.5, {"OMP_NUM_THREADS": "4"}, {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_a_busy_machine_gets_fewer_threads(idle, given, expected, monkeypatch, tmp_path):
    """Without it a conversion would stand still where another program takes a core, or be slow on an idle machine."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  0 0 0 0 0 0 0 0\n")

    def pass_time(_seconds):
        stat.write_text(f"cpu  {round(400 * (1 - idle))} 0 0 {round(400 * idle)} 0 0 0 0\n")

    monkeypatch.setattr(processor, "_STAT", stat)
    monkeypatch.setattr(processor.time, "sleep", pass_time)
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _pid: range(4), raising=False)
    environment = dict(given)
    processor.share(environment)
    assert environment == expected
