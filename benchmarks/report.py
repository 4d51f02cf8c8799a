"""Results as Markdown tables, as a bar chart in SVG, and in README.md between its markers."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks.systems import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MIB = 1024**2
_WIDTH = 720
_LABEL = 130
_BAR = 18
_GAP = 7
_HEAD = 34


def tables(results: dict[str, Any]) -> str:
    """Every job as a Markdown table, with machine and versions."""
    parts = [
        table(
            _title(job),
            ("system", "records/s", "ratio", "whole process", "CPU", "peak memory", "written"),
            [_row(name, one) for name, one in job["systems"].items()],
        )
        for job in results["jobs"]
    ]
    if results["small"]:
        parts.append(_small(results["small"]))
    parts.append(_conditions(results))
    return "\n\n".join(parts)


def write(results: dict[str, Any], folder: Path) -> None:
    """Put tables and chart into a folder's README.md and results.svg."""
    (folder / "results.svg").write_text(chart(results))
    replace(folder / "README.md", f"![Speed in ratios](results.svg)\n\n{tables(results)}")


def replace(page: Path, text: str, name: str = "results") -> None:
    """Put a text between a page's markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = page.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def chart(results: dict[str, Any]) -> str:
    """Bars of each system's speed, kafka-assets being 1."""
    marks: list[str] = []
    y = 0
    for job in results["jobs"]:
        ratios = {name: one["ratio"] for name, one in job["systems"].items() if one.get("ratio")}
        if not ratios:
            continue
        marks.append(f'<text x="0" y="{y + 20}" class="head">{escape(_title(job))}</text>')
        y += _HEAD
        unit = (_WIDTH - _LABEL - 60) / max(ratios.values())
        for name, ratio in ratios.items():
            kind = "ours" if name == OURS else "peer"
            marks.append(f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            place = f'x="{_LABEL}" y="{y}" width="{max(unit * ratio, 1):.1f}" height="{_BAR}"'
            marks.append(f'<rect {place} class="{kind}"/>')
            marks.append(f'<text x="{_LABEL + unit * ratio + 6:.1f}" y="{y + 13}">{ratio:.2f}</text>')
            y += _BAR + _GAP
        y += _GAP
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.head{font-weight:600}"
        ".ours{fill:#2f6fde}.peer{fill:#9aa4b2}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
    )
    title = f"Records per second, {OURS} = 1"
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">',
        f"<title>{title}</title><style>{style}</style>",
        *marks,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _title(job: dict[str, Any]) -> str:
    return f"{job['records']:,} records of {job['value_bytes']:,} bytes"


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    if "error" in one:
        return (name, "failed", "", "", "", "", "")
    ratio = f"{one['ratio']:.2f}" if one["ratio"] else ""
    return (name, f"{one['records_per_second']:,}", ratio, *_cost_cells(one))


def _cost_cells(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{one['process_seconds']:.1f} s",
        f"{one['cpu_seconds']:.1f} s",
        f"{one['peak_pss'] / _MIB:,.0f} MiB",
        f"{one['written'] / _MIB:,.0f} MiB",
    )


def _small(small: dict[str, Any]) -> str:
    ours = small.get(OURS, {}).get("process_seconds")
    rows: list[tuple[str, ...]] = []
    for name, one in small.items():
        if "error" in one:
            rows.append((name, "", "failed", "", "", ""))
            continue
        ratio = f"{one['process_seconds'] / ours:.2f}" if ours else ""
        rows.append((name, ratio, *_cost_cells(one)))
    heads = ("system", "time, ratio", "whole process", "CPU", "peak memory", "written")
    return table("1,000 new records, from process start to exit", heads, rows)


def table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table under a heading, its first column words and the others numbers."""
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", f"|{'---|' + '---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _conditions(results: dict[str, Any]) -> str:
    here = results["machine"]
    versions = "; ".join(
        f"{name}: {', '.join(f'{package} {number}' for package, number in one.items())}"
        for name, one in results["versions"].items()
        if isinstance(one, dict) and one
    )
    return (
        f"Measured {results['measured_at']} at scale {results['scale']:g}, median of {results['rounds']}, in"
        f" {results['took_seconds'] / 60:.0f} minutes, on {told(here)}, the broker (Apache Kafka"
        f" {results['versions']['Apache Kafka']}) on the same machine. {versions}."
    )


def told(here: dict[str, Any]) -> str:
    """A machine in words."""
    return (
        f"{here['cores']} cores ({here['processor']}), {here['memory_gib']} GiB, {here['system']},"
        f" Python {here['python']}"
    )
