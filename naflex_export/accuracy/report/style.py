"""How a report's page looks: its colours, in light and in dark, and its style sheet.

Right and wrong are blue and orange, which every kind of colour blindness tells apart, and never colour alone: what is
wrong also has a word, a cross or another shape. Text has a contrast of at least 4.5 to 1 and graphics of at least 3
(WCAG 2.2 AA), which tests/accuracy/report/test_html.py computes from here.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff",
    "card": "#f4f6f8",
    "ink": "#16191d",
    "muted": "#525d68",
    "line": "#d5dbe1",
    "edge": "#77838f",
    "good": "#0b5a9d",
    "bad": "#9c3a05",
    "on-verdict": "#ffffff",
    "tint": "#fdeadb",
    "within0": "#edf4fb",
    "within1": "#d2e4f4",
    "within2": "#b1d1eb",
    "within3": "#8dbce0",
    "within4": "#68a6d4",
    "within5": "#4793c8",
    "on-within": "#0b1520",
    "over0": "#c24d0a",
    "over1": "#a03e07",
    "over2": "#7d2f05",
    "over3": "#5a2103",
    "on-over": "#ffffff",
}

DARK = {
    "ground": "#11151a",
    "card": "#1b2128",
    "ink": "#e8ecf0",
    "muted": "#a6b0bb",
    "line": "#343d47",
    "edge": "#808c98",
    "good": "#7cbcf3",
    "bad": "#ff9f63",
    "on-verdict": "#0d1115",
    "tint": "#3c2414",
    "within0": "#16273a",
    "within1": "#18344f",
    "within2": "#1a4268",
    "within3": "#1d5283",
    "within4": "#22639f",
    "within5": "#2a75b9",
    "on-within": "#ffffff",
    "over0": "#f08b3e",
    "over1": "#f7a867",
    "over2": "#fcc797",
    "over3": "#ffe5cc",
    "on-over": "#1c0e04",
}

_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:960px;margin:0 auto;padding:20px 16px 40px}
h1,h2,h3{line-height:1.25;margin:0}
h1{font-size:1.5rem}
h2{font-size:1.2rem;margin:2.4rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p,ul{margin:.4rem 0 .8rem}
ul{padding-left:1.2rem}
li,p,dd{overflow-wrap:anywhere}
.verdict{padding:14px 18px;border-radius:8px;color:var(--on-verdict);background:var(--good)}
.failed.verdict{background:var(--bad)}
.verdict p{margin:.2rem 0 0}
.note{color:var(--muted);font-size:.9rem;max-width:75ch}
td .note{white-space:normal;font-size:.85rem}
.warning{border-left:4px solid var(--bad);padding:.3rem .8rem;background:var(--tint)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:1rem 0}
dt{color:var(--muted)}
dd{margin:0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88em}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;margin:.4rem 0 .8rem;
white-space:pre-wrap;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.4rem 0 1rem}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--muted);font-weight:600;white-space:nowrap}
.n{text-align:right;white-space:nowrap}
td code{white-space:nowrap}
.limits td{border-top:2px solid var(--edge);color:var(--muted)}
.broken{color:var(--bad);font-weight:700}
details{margin:.4rem 0 1rem}
summary{cursor:pointer;padding:.3rem 0;font-weight:600}
footer{margin-top:3rem;padding-top:.6rem;border-top:1px solid var(--line)}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;list-style:none}
.keys svg{display:inline-block;vertical-align:-2px;margin-right:.4rem}
svg{display:block;overflow:visible}
svg text{font-size:12px;fill:var(--ink);font-variant-numeric:tabular-nums}
svg .middle{text-anchor:middle}
svg .end{text-anchor:end}
svg .named{paint-order:stroke;stroke:var(--tint);stroke-width:5px}
svg .axis,svg .tick{fill:var(--muted)}
svg .tick{font-size:11px}
svg .strong{font-weight:700}
.cell rect,.swatch{stroke:var(--edge);stroke-width:1}
.uncovered rect{fill:var(--ground);stroke-dasharray:2 3}
.cell .figure{font-size:11px}
.notfinite rect,.swatch.notfinite{fill:var(--ink)}
.notfinite text{fill:var(--ground)}
line.limit{stroke:var(--ink);stroke-width:2}
.gridline,.base{stroke:var(--line);stroke-width:1}
.base{stroke:var(--edge)}
.jump{stroke:var(--edge);stroke-width:1;stroke-dasharray:1 4}
.first{fill:var(--tint)}
.trend{stroke:var(--edge);stroke-width:1}
.floor{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 2}
.holds path,.holds circle{fill:var(--good)}
.deviates path{fill:var(--bad)}
.candidate rect{fill:var(--good)}
.baseline rect{fill:var(--ground);stroke:var(--muted);stroke-width:1.5}
.candidate text,.baseline text{font-size:11px}
.baseline text{fill:var(--muted)}
@media (max-width:950px){.many .figure{display:none}}
@media (max-width:640px){main{padding:12px 12px 32px}.minor,.few .figure{display:none}
dl{column-gap:.8rem}}
@media print{body{font-size:10pt}main{max-width:none;padding:0}*{print-color-adjust:exact;
-webkit-print-color-adjust:exact}.wide{overflow:visible}svg,pre,tr{break-inside:avoid}svg.tall{break-inside:auto}table{font-size:8pt}h2,h3,summary{break-after:avoid}
details::details-content{content-visibility:visible;block-size:auto}}
"""


def stylesheet() -> str:
    """Return the page's style sheet. Paper is light whatever the screen is."""
    steps = [name for name in LIGHT if name.startswith(("within", "over"))]
    cells = [f".{step} rect,.swatch.{step}{{fill:var(--{step})}}" for step in steps]
    texts = [f".{step} text{{fill:var(--on-{step.rstrip('0123456789')})}}" for step in steps]
    return "\n".join(
        [
            f":root{{color-scheme:light dark;{_variables(LIGHT)}}}",
            f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}",
            _RULES.strip(),
            *cells,
            *texts,
        ]
    )


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())
