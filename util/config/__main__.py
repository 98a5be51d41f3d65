"""``python -m util.config`` prints the table of all keys, which ends docs/config.md."""

from __future__ import annotations

from util.config.keys import plain
from util.config.schema import SECTIONS


def markdown() -> str:
    """The keys section by section: name, default, what it takes, what it is for."""
    lines = []
    for section, keys in SECTIONS.items():
        lines += [f"### {section}", "", "| key | default | takes | |", "|---|---|---|---|"]
        for one in keys:
            null = one.default is None
            default = "null" if null else plain(one.default) or repr(one.default)
            takes = one.expects() + (" or null" if null else "")
            lines.append(f"| `{one.name}` | {default} | {takes} | {one.doc} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
