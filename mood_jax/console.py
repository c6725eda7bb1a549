"""What scripts and studies print: progress and tables."""

from __future__ import annotations

import sys
import time

from mood_jax import processes


class Progress:
    """A line of progress on stderr with rate and time left: overwritten on a terminal, one line a step elsewhere.

    `label` None prints nothing, nor does any process but the first. `total` and `done` count units of `unit`; what a
    resumed run skips is not in the rate.
    """

    def __init__(self, label: str | None, total: int, unit: str, skipped: int = 0):
        self.label, self.total, self.unit = label if processes.is_first() else None, total, unit
        self.done = self.skipped = skipped
        self.started = time.perf_counter()

    def advance(self, n: int, note: str = "") -> None:
        self.done += n
        if self.label is None:
            return
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rate = (self.done - self.skipped) / seconds
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        line = f"{self.label}: {self.done}/{self.total} {self.unit} · {rate:,.1f}/s · {left:,.0f} s left"
        line += f" · {note}" if note else ""
        if sys.stderr.isatty():
            end = "\n" if self.done >= self.total else ""
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain table: first column left, the others right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(c) for c in column) for column in columns]
    lines = []
    for row in [header, ["-" * w for w in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
