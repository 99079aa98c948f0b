"""The promises, their harnesses, and how many attempts the short and the long form make."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture import cluster, foreign, processors, server, training, work
from torture.figure import Figure, World


@dataclass(frozen=True)
class Promise:
    """One row of the table; `needs` is a package that is not installed everywhere."""

    name: str
    text: str
    measure: Callable[[int, Path, World], Figure]
    short: int
    long: int
    needs: str | None = None

    @property
    def missing(self) -> str | None:
        """Why this promise cannot be measured here; None where it can."""
        if self.needs is None or importlib.util.find_spec(self.needs) is not None:
            return None
        return f"needs {self.needs}, which is not installed here: make test-extras has it"


PROMISES = (
    Promise(
        "exact-resume", "Killed at random moments, a resumed run ends in the same bytes", training.exact_resume, 3, 300
    ),
    Promise("atomic-state", "A damaged checkpoint is never chosen", training.atomic_state, 60, 1000),
    Promise("full-disk", "A full disk is one message and loses nothing", training.full_disk, 2, 30),
    Promise("determinism", "The same recipe gives the same bytes", training.determinism, 2, 5),
    Promise("other-kernels", "Lesser processors give the same labels", processors.other_kernels, 16, 1000),
    Promise("out-of-memory", "Memory that runs out changes no step and no answer", training.out_of_memory, 3, 60),
    Promise("finite-state", "No state that is not finite is saved", training.finite_state, 8, 100),
    Promise("no-execution", "Weights and folders cannot run code", foreign.pickles, 19, 95),
    Promise("adapter-configs", "Configs of adapters are data", foreign.adapter_configs, 60, 10_000),
    Promise("malformed-input", "Damaged tables and recipes are one message", foreign.malformed_input, 200, 20_000),
    Promise("bulk-rows", "Killed bulk work gives every row once", work.bulk_rows, 1, 100),
    Promise(
        "cluster-faults",
        "A killed node or process of a cluster costs no row and no trial",
        cluster.cluster_faults,
        2,
        40,
        needs="ray",
    ),
    Promise("overload", "Ten times the capacity is shed, not suffered", server.overload, 60, 8000),
    Promise("body-limits", "Bad bodies cost under 20 MB", server.bodies, 12, 300),
    Promise("safe-page", "The page gives away no file and fetches nothing", server.safe_page, 60, 3000),
    Promise("inert-reports", "Hostile reviews stay text", foreign.inert_reports, 200, 10_000),
    Promise("run-names", "Names of runs stay inside", foreign.run_names, 2000, 100_000),
    Promise("privacy", "No socket, and no word of a review in what is said", work.privacy, 8, 48),
    Promise("silent-log", "The server's log and errors quote no review; ids match", server.silent_log, 60, 2000),
    Promise("api-schema", "Requests made from the OpenAPI document get no 5xx", server.api_schema, 40, 1500),
)
