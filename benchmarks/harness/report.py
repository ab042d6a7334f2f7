"""One self-contained HTML page of a run: what was measured, with what, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eqtp.benchmarks.harness.charts import STYLE
from eqtp.benchmarks.harness.measure import Row
from eqtp.benchmarks.harness.plots import Figure, colours, family_plots, overview_plots
from eqtp.files import write_atomically

__all__ = ["page", "write_report"]

_STYLE = (
    STYLE
    + """
* { box-sizing: border-box; } body { margin: 0 auto; padding: 24px; max-width: 1180px;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 40px 0 8px; font-size: 20px; }
h3 { margin: 0 0 8px; font-size: 14px; font-weight: 600; } p { margin: 4px 0; }
.soft, figcaption { color: var(--soft); font-size: 13px; } a { color: var(--c0); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr));
  gap: 16px; align-items: start; }
figure { margin: 0; padding: 14px; background: var(--panel); border-radius: 8px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; } td.t, th.t { text-align: left; }
td.why { white-space: normal; text-align: left; min-width: 320px; }
summary { cursor: pointer; margin: 12px 0 6px; } tr.case td { padding-top: 12px; font-weight: 600;
  white-space: normal; } tr.case .soft { font-weight: 400; }
"""
)

_READING = """
<p>Times are medians over rounds in which the contestants take turns in one process; the ratio is
the baseline's lower quartile over the contestant's, so above 1 is faster. The error is the
largest relative difference, of values or of any gradient, from the definition in float64. Roofline
is the least time for the counted work (every operand and result moved once, multiplications and
additions of the plain product) over the measured one. ns/output divides by the numbers of the
result, &micro;s/dim by the dimension of the bilinear maps that the weights reach. Refused: the
error is above its tolerance, the result is empty, or the clock met something being set up.</p>
"""


def write_report(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the page of a record, whole or not at all."""
    write_atomically(path, page(record).encode())


def page(record: Mapping[str, Any]) -> str:
    """The page as a text."""
    rows: Sequence[Row] = record["rows"]
    clock = record["clock"]
    measured = [row for row in rows if row["status"] == "measured"]
    colour = colours(measured)
    overview = overview_plots(measured, record["ceilings"], clock, colour)
    sections = [_section("Overview", overview, "")] if overview else []
    for family in dict.fromkeys(row["family"] for row in rows):
        of = [row for row in rows if row["family"] == family]
        shown = [row for row in of if row["status"] == "measured"]
        plots = family_plots(shown, record["ceilings"], clock, colour)
        sections.append(_section(family, plots, _table(of, clock)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>eqtp benchmarks</title><style>{_STYLE}</style></head><body>"
        f"{_head(record)}{_READING}{_not_measured(record)}{''.join(sections)}</body></html>\n"
    )


def _head(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    providers = ", ".join(f"{name}: {text}" for name, text in record["providers"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; device {machine['device']}; load "
        f"{machine['load'][0]:.1f} at the start",
        f"commit {machine['commit']}, {machine['time']}, Python {machine['python']}, {packages}",
        f"providers: {providers}",
        f"{record.get('seconds', 0):.0f} s; {'a quick run; ' * record['quick']}{record['clock']} "
        "clock",
    ]
    text = "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)
    return f"<h1>eqtp benchmarks</h1>{text}"


def _section(title: str, figures: Sequence[Figure], table: str) -> str:
    charts = f'<div class="figures">{"".join(map(_figure, figures))}</div>' if figures else ""
    return f"<h2>{escape(title.replace('_', ' '))}</h2>{charts}{table}"


def _figure(figure: Figure) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in figure.notes)
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{figure.chart}"
        f"<figcaption>{notes}</figcaption></figure>"
    )


def _not_measured(record: Mapping[str, Any]) -> str:
    """Refused and absent contestants with their reasons, and families that failed."""
    found: dict[tuple[str, str, str], int] = {}
    for row in record["rows"]:
        if row["status"] != "measured":
            key = (row["status"], row["contestant"], row["reason"])
            found[key] = found.get(key, 0) + 1
    lines = [
        f'<tr><td class="t">{status}</td><td class="t">{escape(who)}</td><td>{number}</td>'
        f'<td class="why">{escape(why)}</td></tr>'
        for (status, who, why), number in sorted(found.items(), reverse=True)
    ]
    lines += [
        f'<tr><td class="t">FAILED</td><td class="t">{escape(what)}</td><td></td>'
        f'<td class="why">{escape(why)}</td></tr>'
        for what, why in record["failed"].items()
    ]
    if not lines:
        return ""
    return (
        f"<details><summary>Refused and absent: {len(lines)} reasons</summary>"
        f'<div class="wide"><table>{"".join(lines)}</table></div></details>'
    )


_COLUMNS = (
    *("contestant", "ms", "quartiles", "ratio", "quartiles", "error", "roofline", "peak MB"),
    *("ns/output", "µs/dim", "paths", "setup s", "bar"),
)


def _table(rows: Sequence[Row], clock: str) -> str:
    body: list[str] = []
    before = None
    for row in rows:
        if row["status"] != "measured":
            continue
        key = (row["case"], row["task"], row["dtype"], row["threads"])
        if key != before:
            sizes = ", ".join(f"{name} {value}" for name, value in row["sizes"].items())
            text = f"{row['case']}: {row['task']}, {row['dtype']}, {row['threads']} thread(s)"
            body.append(
                f'<tr class="case"><td class="t" colspan="{len(_COLUMNS)}">{escape(text)} '
                f'<span class="soft">{escape(sizes)}</span></td></tr>'
            )
            before = key
        body.append(_table_row(row, clock))
    if not body:
        return ""
    heads = "".join(f"<th{' class=t' * (name == 'contestant')}>{name}</th>" for name in _COLUMNS)
    return (
        "<details><summary>All numbers</summary>"
        f'<div class="wide"><table><tr>{heads}</tr>{"".join(body)}</table></div></details>'
    )


def _table_row(row: Row, clock: str) -> str:
    times, ratio = row[clock], row.get("ratio", {}).get(clock) or {}
    low, high = times["quartiles"]
    bar = row.get("bar")
    cells = [
        _form(times["median"], "{:.3g}", 1e3),
        f"{1e3 * low:.3g} to {1e3 * high:.3g}",
        _form(ratio.get("value"), "{:.2f}"),
        f"{ratio['first']:.2f} to {ratio['third']:.2f}" if ratio else "",
        _form(row["error"], "{:.0e}"),
        _form(row.get("roofline"), "{:.0%}"),
        _form(row.get("peak_bytes"), "{:.3g}", 1e-6),
        _form(row.get("seconds_per_output"), "{:.3g}", 1e9),
        _form(row.get("seconds_per_dimension"), "{:.3g}", 1e6),
        _form(row.get("paths"), "{}"),
        _form(row.get("setup_seconds"), "{:.2g}"),
        "" if bar is None else f"{bar:g} {'ok' if ratio.get('value', 0) >= bar else 'MISSED'}",
    ]
    about = escape(row.get("about") or "", quote=True)
    name = f'<td class="t" title="{about}">{escape(row["contestant"])}</td>'
    return f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _form(value: float | None, form: str, factor: float = 1) -> str:
    return "" if value is None else form.format(value * factor if factor != 1 else value)
