"""FSDP2 and tensor parallelism: what they make of our module, over gloo; refused on a CPU.

Training under either needs an accelerator, so it is not run here: see fsdp_probe.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
import tiny_policies as tiny
from launching import ROOT, config_file, environment, launch, reports

pytestmark = pytest.mark.distributed
PROBE = "tests/distributed/fsdp_probe.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each rank found, by the kind of policy; GPT-2's head is its embedding."""
    folder = tmp_path_factory.mktemp("fsdp")
    paths = [tiny.save(folder / kind, kind) for kind in ("gpt2", "llama")]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", PROBE]
    done = subprocess.run(
        [*words, str(folder), *paths], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [row["found"] for row in reports(done)]


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(
    ("kind", "units"), [("full", 5), ("lora", 3), ("critic", 7), ("adapter", 3)]
)
def test_sharded_parts_learn_as_the_whole(found, kind, units, efficient):
    assert len(found) == 2
    for rank in found:
        result = rank[f"{kind}-{efficient}"]
        assert result["units"] == units  # the root, and two layers of each model
        assert result["outputs"] < 1e-5
        assert result["weights"] < 1e-5
        assert result["trained"] > 0
        assert result["samples"]


def test_split_layers_learn_as_whole_ones(found):
    for rank in found:
        result = rank["split"]
        assert result["outputs"] < 1e-4
        assert result["weights"] < 1e-5
        assert result["samples"]
        assert result["places"] == [0, 1]  # both ranks take the same examples
        for alone, split in result["norms"]:
            assert split == pytest.approx(alone, rel=1e-4)


def test_fsdp_is_refused_on_a_cpu_with_the_reason(tmp_path):
    argv = ["--config", "recipes/configs/smoke.yaml", "--train.output_dir", str(tmp_path / "run")]
    done = launch("recipes/dpo.py", argv, config_file("fsdp2"))
    assert done.returncode != 0
    assert "needs an accelerator: on CPU the launcher silently falls back" in done.stderr
    assert not (tmp_path / "run").exists()
