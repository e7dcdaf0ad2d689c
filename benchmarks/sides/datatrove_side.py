"""datatrove's cleaning of a folder of JSON lines, in its own venv: prints seconds and documents."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path


def main() -> None:
    source, work, language, near = (
        sys.argv[1],
        Path(sys.argv[2]),
        sys.argv[3],
        sys.argv[4] == "near",
    )
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    shutil.rmtree(work, ignore_errors=True)

    def run(*steps: object) -> None:
        LocalPipelineExecutor(
            pipeline=list(steps),
            tasks=1,
            workers=1,
            skip_completed=False,
            logging_dir=f"{work}/logs",
        ).run()

    start = time.perf_counter()
    clean = f"{work}/clean"
    run(
        JsonlReader(source),
        FTFYFormatter(),
        PIIFormatter(),
        GopherRepetitionFilter(language=language),
        FineWebQualityFilter(language=language),
        JsonlWriter(clean, compression=None),
    )
    filtered = time.perf_counter() - start
    if near:
        # As many hashes as ours: 8 bands of 16 lie near the threshold 0.8.
        config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=16,
                               hashes_per_bucket=8)  # fmt: skip
        run(
            JsonlReader(clean),
            MinhashDedupSignature(f"{work}/signatures", config=config, language=language),
        )
        for bucket in range(config.num_buckets):
            LocalPipelineExecutor(
                pipeline=[
                    MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)
                ],
                tasks=config.num_buckets,
                workers=1,
                local_tasks=1,
                local_rank_offset=bucket,
                logging_dir=f"{work}/logs",
                skip_completed=False,
            ).run()
        run(MinhashDedupCluster(f"{work}/buckets", f"{work}/ids", config=config))
        run(
            JsonlReader(clean),
            MinhashDedupFilter(f"{work}/ids"),
            JsonlWriter(f"{work}/out", compression=None),
        )
    kept = sum(
        len(p.read_text().splitlines())
        for p in (work / ("out" if near else "clean")).rglob("*.jsonl")
    )
    print(json.dumps({"filter_s": filtered, "total_s": time.perf_counter() - start, "kept": kept}))


if __name__ == "__main__":
    main()
