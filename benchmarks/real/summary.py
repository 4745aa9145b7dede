"""The arms' result files as one result file and one table."""

import json
from pathlib import Path
from typing import Any

import measuring

_COLUMNS = {
    "facts kept": "facts kept",
    "equal texts": "equal texts",
    "tokens equal at the same place": "equal tokens",
    "last words": "last words",
}


def summarise(folder: Path, results: Path) -> str:
    """Writes real_model.json; the table as Markdown."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise SystemExit(f"{folder} holds no results; run `convert ARM` and `eval ARM` first")
    rows = [
        {**row, "settings": {"arm": r["arm"], "trained_tokens": r["training"]["tokens"], **row["settings"]}}
        for r in records
        for row in r["rows"]
    ]
    measuring.write("real_model", rows, folder=results)
    names = ("arm", "decoding", "tokens", "minutes", *_COLUMNS.values(), "bits a token (AR)", "tokens a forward")
    names += tuple(f"speed at {size}" for size in (1, 8, 32))
    found = [_cells(record, decoding) for record in records for decoding in _decodings(record)]
    lines = [names, ["---", "---", *["---:"] * (len(names) - 2)], *found]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _decodings(record: dict[str, Any]) -> list[str]:
    """Those that it was measured with, its own first."""
    named = (row["settings"].get("decoding", record["decoding"]) for row in record["rows"])
    return list(dict.fromkeys([record["decoding"], *named]))


def _cells(record: dict[str, Any], main: str) -> list[str]:
    training = record["training"]
    found = {}
    for row in record["rows"]:
        about = row["settings"]
        if about.get("kind", "all") == "all" and about.get("decoding") == main:
            found[row["metric"], about.get("batch_size")] = row
    cells = [record["arm"], main, f"{training['tokens']:,}", f"{training['seconds'] / 60:.0f}"]
    for metric in _COLUMNS:
        row = found.get((metric, None))
        cells.append(f"{row['ours'] / row['rival']:.0%} of {row['rival']:.0f}" if row else "")
    bits = found.get(("bits per token under the AR model", None))
    cells.append(f"{bits['ours']:.2f} ({bits['rival']:.2f})" if bits else "")
    kinds = [
        row
        for row in record["rows"]
        if row["metric"] == "tokens per forward"
        and row["settings"]["decoding"] == main
        and row["settings"].get("kind", "facts") != "facts"  # those of timed passes have no kind
    ]
    cells.append(", ".join(f"{row['ours']:.2f}" for row in kinds))
    for size in (1, 8, 32):
        row = found.get(("tokens per second", size))
        cells.append(f"{row['ratio']:.2f} ({row['min']:.2f} to {row['max']:.2f})" if row else "")
    return cells
