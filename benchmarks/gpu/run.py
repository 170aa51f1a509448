"""Check and measure everything that needs a GPU, in at most seven minutes; run by `make gpu`.

Needs no network: PyTorch with CUDA must be installed, the other dependencies are taken from the
folder of wheels that `make gpu-wheels` has downloaded elsewhere, into a temporary folder. Each
part (`parts.py`) runs in a process of its own with a time limit, so that one that fails, crashes
or hangs does not affect the others. Ends with a table, also written to `gpu.md` and `gpu.json`;
exit code 1 if any part failed.

    python benchmarks/gpu/run.py
    python benchmarks/gpu/run.py --device cpu --quick    # reduced, to try the script itself
    python benchmarks/gpu/run.py --parts predict,dense
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seconds for each part, in the order they run; together with the installation seven minutes.
BUDGET = {
    "packages": 30, "predict": 110, "variants": 60, "dense": 50,
    "train": 60, "memory": 30, "tests": 70,
}  # fmt: skip
BUDGET_INSTALL = 60
LIMIT_S = 420
KEPT_LINES = 12  # of what a failed part printed last


def install(wheels, target):
    """Unpack the wheels for this process's children; raises where pip does not succeed."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        return f"no wheels in {wheels}: using the installed packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--disable-pip-version-check", "--target", str(target), *files]
    subprocess.run(command, check=True, timeout=BUDGET_INSTALL, capture_output=True, text=True)
    return f"{len(files)} wheels from {wheels.name}"


def run_part(name, options, environment, seconds):
    """Run one part; return its report, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, str(ROOT / "benchmarks/gpu/parts.py"), name]
        command += ["--out", str(out), "--scratch", folder, "--device", options.device]
        command += ["--quick"] if options.quick else []
        started = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=max(1.0, seconds), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            printed, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
            printed = printed if isinstance(printed, str) else printed.decode(errors="replace")
            code = None
        result = {"seconds": round(time.monotonic() - started, 1)}
        try:
            result |= json.loads(out.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            how = (
                f"exceeded its {seconds:.0f} s" if code is None else f"ended with exit code {code}"
            )
            result |= {"ok": False, "reason": how, "rows": []}
        if not result["ok"]:
            result["printed"] = printed.splitlines()[-KEPT_LINES:]
        return result


def table(parts, card):
    """Format all rows as Markdown."""
    lines = [f"GPU check on {card}:", "", "| part | what | value |", "|---|---|---|"]
    for name, part in parts.items():
        state = "ok" if part["ok"] else "**failed**: " + part["reason"].replace("|", "\\|")
        lines.append(f"| {name} | {part['seconds']:.0f} s | {state} |")
        lines += [f"| | {what} | {value} |" for what, value in part["rows"]]
    return "\n".join(lines)


def main():
    """Install, run each part, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu to try the script")
    parser.add_argument("--quick", action="store_true", help="tiny inputs; no meaningful speed")
    parser.add_argument("--parts", default=",".join(BUDGET), help="which, commas between")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu")
    options = parser.parse_args()
    chosen = options.parts.split(",")
    unknown = [name for name in chosen if name not in BUDGET]
    if unknown:
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(BUDGET)}")
    started, parts = time.monotonic(), {}
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([site, str(ROOT)]),
            "MPLBACKEND": "Agg",
        }
        try:
            message, ok = install(options.wheels, site), True
        except (subprocess.SubprocessError, OSError) as error:
            message, ok = f"{error}: {getattr(error, 'stderr', None) or ''}".strip(), False
        took = round(time.monotonic() - started, 1)
        parts["install"] = {"ok": ok, "reason": message, "rows": [], "seconds": took}
        print(f"install: {message}", flush=True)
        for name in chosen:
            left = LIMIT_S - (time.monotonic() - started)
            parts[name] = run_part(name, options, environment, min(BUDGET[name], left))
            state = "ok" if parts[name]["ok"] else f"failed: {parts[name]['reason']}"
            print(f"{name}: {state} ({parts[name]['seconds']:.0f} s)", flush=True)
            for line in parts[name].get("printed", []):
                print(f"  {line}", flush=True)
    card = parts.get("packages", {}).get("card", options.device)
    text = table(parts, card)
    (options.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    (options.out / "gpu.json").write_text(
        json.dumps({"card": card, "quick": options.quick, "parts": parts}, indent=2) + "\n",
        encoding="utf-8",
    )
    print(f"\n{text}\n\nwritten: {options.out / 'gpu.md'}, gpu.json")
    return 0 if all(part["ok"] for part in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
