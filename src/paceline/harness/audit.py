"""audit.config beside a compliance test, and never beside another.

LoadGen obeys such a file without a word in its summary, and a result made under one is none. So
it exists only from the moment before LoadGen looks for it until LoadGen has read it. A process
that is killed in between leaves it behind: `remove` takes it away when the test's process has
ended, and whenever a run begins or goes on.

    with placed(folder, num_samples) as audit:   the file is there
        audit.remove()                           LoadGen has read it
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import RunDirError
from paceline.mlperf import test06
from paceline.mlperf.tree_rules import TEST06
from paceline.rundir import write_atomically

__all__ = ["AuditFile", "audit_path", "placed", "remove", "samples_of"]

_NAME = "audit.config"


@dataclass(frozen=True, slots=True)
class AuditFile:
    """The file while it may exist."""

    path: Path

    def remove(self) -> None:
        """Take it away; nothing happens when it is gone."""
        self.path.unlink(missing_ok=True)


def audit_path(folder: Path) -> Path:
    """Where LoadGen looks for the settings of a test in `folder`: never in the user's folder."""
    return folder.resolve() / _NAME


def samples_of(num_samples: int) -> int:
    """How many samples TEST06 issues of a benchmark that has `num_samples`."""
    return min(num_samples, TEST06.num_samples)


@contextlib.contextmanager
def placed(folder: Path, num_samples: int) -> Iterator[AuditFile]:
    """TEST06's settings in `folder`, gone afterwards however the block ends."""
    audit = AuditFile(audit_path(folder))
    try:
        write_atomically(audit.path, test06.audit_config(samples_of(num_samples)))
        yield audit
    finally:
        audit.remove()


def remove(folder: Path) -> bool:
    """Take away what a killed process left in `folder`; True when there was something.

    Raises RunDirError when it cannot be removed.
    """
    path = audit_path(folder)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunDirError(
            f"{path} cannot be removed: {error.strerror}.", hint=f"remove {path} yourself"
        ) from error
    return True
