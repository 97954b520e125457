"""The look of the inspection's page: its colours by name, light and dark, and its style sheet."""

LIGHT = {
    "page": "#ffffff",
    "panel": "#f5f6f8",
    "line": "#c9ced6",
    "text": "#1b1f24",
    "quiet": "#59616b",
    "loss": "#0b5424",
    "loss-page": "#d8f3de",
    "special": "#1c4f9c",
    "special-page": "#e4ecfa",
    "bad": "#a3161d",
    "bar": "#2f6fce",
}
DARK = {
    "page": "#14171b",
    "panel": "#1d2127",
    "line": "#414852",
    "text": "#e6e9ed",
    "quiet": "#a2abb6",
    "loss": "#93e8ab",
    "loss-page": "#103a1f",
    "special": "#a9c8fb",
    "special-page": "#1d2f4d",
    "bad": "#ff9a94",
    "bar": "#6aa2f7",
}
"""Every writing colour has 4.5:1 and more on the page, on a panel and on its own ground (WCAG 2.2, 1.4.3)."""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--text);
 font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:0;padding:.5rem .75rem;background:var(--panel);border-bottom:1px solid var(--line)}
h3 small,.plain,header p,dt,thead th,svg text{color:var(--quiet)}
h3 small{font-weight:400;font-size:.875rem;margin-left:.5rem}
header p{margin:.25rem 0 1.25rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:0}
dd{margin:0}
.tables{display:flex;flex-wrap:wrap;gap:0 3rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .75rem .2rem 0;text-align:right;font-weight:400;white-space:nowrap;overflow-wrap:normal}
th:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
th+th,td{padding-right:0;padding-left:1.5rem}
thead>tr>td{padding-left:0}
tbody tr{border-top:1px solid var(--line)}
.checks{list-style:none;margin:0;padding:0}
.checks li>:first-child{min-width:7rem}
.checks li{display:grid;grid-template-columns:max-content 1fr;gap:0 1rem;
 padding:.3rem 0;border-top:1px solid var(--line)}
.checks b{font-weight:600}
.checks .plain::before{content:"· "}
.ok{color:var(--loss)}.bad{color:var(--bad);font-weight:600}.unknown{color:var(--quiet)}
figure{margin:0;max-width:38rem}
figure svg{display:block;width:100%;height:auto}
svg text{fill:var(--quiet);font:13px system-ui,sans-serif}
svg .axis{stroke:var(--line)}svg .bar{fill:var(--bar)}
svg .limit{stroke:var(--bad);stroke-dasharray:4 3}svg text.limit-word{fill:var(--bad)}
.legend{margin:0 0 1rem}.legend p{margin:.25rem 0}
.legend p:first-child{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
article{border:1px solid var(--line);border-radius:6px;margin:0 0 1rem;overflow:clip}
.flow{padding:.75rem;overflow-x:auto;white-space:pre-wrap;tab-size:4;unicode-bidi:plaintext;color:var(--quiet);
 font:.9375rem/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
mark{background:var(--loss-page);color:var(--loss);text-decoration:underline;text-underline-offset:.25em;
 text-decoration-thickness:2px;unicode-bidi:isolate}
mark,.special,.flow span{-webkit-box-decoration-break:clone;box-decoration-break:clone}
.special{color:var(--special);background:var(--special-page);border-radius:3px;padding:0 .2em;unicode-bidi:isolate;
 white-space:pre}
mark .special{color:var(--loss);background:none;box-shadow:0 0 0 1.5px var(--loss)}
.flow i,.legend i{font-style:normal;unicode-bidi:isolate}
.cut{color:var(--bad);white-space:nowrap;unicode-bidi:isolate}
.flow:hover span:not(.special),:has(#bounds:checked) .flow span:not(.special){box-shadow:inset 1px 0 var(--quiet)}
:has(#bounds:checked) .flow span:empty{border-left:3px double}
.flow span:hover{outline:2px solid var(--text);outline-offset:1px}
details>summary{padding:.25rem .75rem;background:var(--panel);color:var(--quiet);cursor:pointer;font-size:.875rem}
@media (max-width:34rem){
 body{padding:1rem .75rem 3rem}
 dl{gap:.15rem .75rem;font-size:.9375rem}
 svg text{font-size:17px}
 .tables{display:block}table{width:100%}
 h3 small{display:block;margin:0}
 .checks li{grid-template-columns:1fr}
}
"""
)
