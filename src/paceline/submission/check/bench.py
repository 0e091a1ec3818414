"""How fast a tree is checked: `paceline bench check`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from paceline.submission.check.sample_tree import SampleTree, write_sample_tree
from paceline.submission.check.tree import examine_tree

__all__ = ["bench_check"]


def bench_check(directories: int, *, processes: int | None = None) -> dict[str, float]:
    """Check a made-up tree of `directories` scenario directories with logs of the real size.

    Returns seconds, directories, findings, failing findings and milliseconds a directory.
    """
    sample = SampleTree(
        num_systems=-(-directories // 2), num_indices=24576, answer_len=290, division="closed"
    )
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as folder:
        tree = write_sample_tree(Path(folder) / "tree", sample)
        start = time.perf_counter()
        checked = examine_tree(tree, processes=processes)
        seconds = time.perf_counter() - start
    checked_dirs = len(checked.outcomes)
    return {
        "seconds": seconds,
        "directories": checked_dirs,
        "findings": len(checked.findings),
        "failing": sum(not finding.passed for finding in checked.findings),
        "ms_per_directory": 1000 * seconds / checked_dirs,
    }
