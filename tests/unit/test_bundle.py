"""The model file of a checkpoint is made of the sampler's own sources: complete, alone, and each name once."""

import ast
from pathlib import Path

import pytest

from opdlm.checkpoints import bundle
from opdlm.checkpoints.bundle import model_file
from opdlm.config import CONSTRAINTS, GenerationSettings
from opdlm.core import commit


def test_it_needs_nothing_of_opdlm() -> None:
    """Else a checkpoint would not load where opdlm is not installed."""
    imported = [node for node in ast.walk(ast.parse(model_file())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imported}
    assert {"torch", "transformers"} <= modules
    assert not modules & {"opdlm", "pydantic", "jinja2", "rich"}


def test_what_it_defines_is_the_sources_own_text() -> None:
    """Else a rule or a default would stand in two places and could differ."""
    text = model_file()
    source = Path(commit.__file__).read_text("utf-8")
    for rule in ("static", "sequential", "dynamic", "prefix", "factor", "entropy_bound", "klass"):
        node = next(one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef) and one.name == rule)
        definition = ast.get_source_segment(source, node)
        assert definition is not None
        assert text.count(definition) == 1
    scope: dict = {"__name__": "modeling_opdlm"}
    exec(compile(text, "modeling_opdlm.py", "exec"), scope)
    assert {name: value[0] for name, value in scope["SETTINGS"].items()} == GenerationSettings().model_dump(
        exclude=set(CONSTRAINTS)
    )


def test_it_leaves_out_what_is_not_needed() -> None:
    """Else users would read training code in a checkpoint."""
    text = model_file()
    for name in (
        "StateBatch",
        "TeacherTargets",
        "find_or_add_mask_token",
        "chunked_sum",
        "ConfigError",
        "limited_proposals",
    ):
        assert name not in text


def test_a_name_of_two_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one definition would silently replace the other in the bundle."""
    read = bundle._read

    def twice(name: str) -> bundle._Module:
        module = read(name)
        if name != "opdlm.sampling.rules":
            return module
        double = bundle._Definition("def stack(): ...", frozenset({"stack"}), frozenset())
        needed = next(one for one in module.definitions if "decide" in one.binds)
        more = bundle._Definition(needed.text, needed.binds, needed.reads | {"stack"})
        kept = tuple(one for one in module.definitions if one is not needed)
        return bundle._Module(module.name, module.doc, (*kept, more, double), module.ours, module.others)

    monkeypatch.setattr(bundle, "_read", twice)
    bundle.model_file.cache_clear()
    with pytest.raises(ValueError, match="both define stack"):
        model_file()
    monkeypatch.undo()
    bundle.model_file.cache_clear()
