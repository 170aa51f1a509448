"""Write the rows of the settings in config.md from the code; run after changing a setting.

python docs/make_config_tables.py
"""

import re
from pathlib import Path

from wsi_pipeline.config.manual import list_settings, markdown_row

PAGE = Path(__file__).with_name("config.md")
N_BARS = 5  # of a row: key, default, unit, meaning


def main() -> None:
    """Replace each row of the page by that of the code; a new setting's follows the one before."""
    rows = {setting.key: markdown_row(setting) for setting in list_settings()}
    lines, seen = [], set()
    after = dict(zip(list(rows)[:-1], list(rows)[1:], strict=True))
    present = set(re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        key = re.match(r"\| `([^`]+)` \|", line)
        name = key[1] if key and len(re.findall(r"(?<!\\)\|", line)) == N_BARS else None
        if name not in rows:
            lines.append(line)
            continue
        lines.append(rows[name])
        seen.add(name)
        while (name := after.get(name, "")) and name not in present:
            lines.append(rows[name])
            seen.add(name)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if missing := sorted(set(rows) - seen):
        raise SystemExit(f"{PAGE.name}: no table for {', '.join(missing)}; add their rows by hand")


if __name__ == "__main__":
    main()
