"""The page's style sheet."""

from orthora.figures.svg import theme_css

CSS = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5a626d;--back:#f6f7f9;--card:#fff;
--rule:#d9dde3}
@media (prefers-color-scheme:dark){
:root{--ink:#e7eaee;--soft:#a5adb8;--back:#14171b;--card:#1e2228;--rule:#383f48}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:32px}main{padding-bottom:48px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .7rem}
p,li,dd{overflow-wrap:anywhere}.soft,caption,figcaption,dt{color:var(--soft)}
.prose{max-width:78ch}.prose li{margin:.35rem 0}.prose{padding-left:1.2rem}p.prose{padding-left:0}
.box{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.7rem .65rem .4rem;font-size:.88rem}
caption span{display:inline-block;position:sticky;left:.65rem;max-width:calc(100vw - 60px)}
th,td{padding:.45rem .65rem;text-align:left;border-top:1px solid var(--rule);white-space:nowrap}
.words th,.words td{white-space:normal;min-width:9rem}
thead th{font-weight:600;color:var(--soft)}tbody th{font-weight:600}
dl.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:.5rem 1.5rem;
margin:0;padding:.9rem;font-size:.9rem}dl.grid dt{font-size:.82rem}dl.grid dd{margin:0}
dl.grid dt,dl.grid dd{overflow-wrap:anywhere}
.legend{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;
margin:0 0 14px;padding:.5rem .8rem;list-style:none;background:var(--card);
border:1px solid var(--rule);border-radius:10px;font-size:.88rem}
.legend li{display:flex;align-items:center;gap:.4rem}.legend svg{width:46px;height:15px;flex:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(350px,100%),1fr));gap:14px}
.drawings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(350px,100%),1fr));
gap:0 14px;align-items:start}.drawings>*{min-width:0}.drawings>.wide{grid-column:1/-1}
@media (min-width:770px){.drawings>.two{grid-column:span 2}}
.drawing p{font-size:.88rem;line-height:1.4;margin:.2rem 0 .5rem;padding:0}
figure{margin:0;padding:10px 10px 8px;background:var(--card);border:1px solid var(--rule);
border-radius:10px;break-inside:avoid}
figure svg{display:block;width:100%;height:auto}
figure text{font-family:system-ui,sans-serif!important}
figcaption{font-size:.8rem;padding:2px 4px}
details{margin:.5rem 0}summary{cursor:pointer;padding:.4rem 0}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
.plain{position:static;border:0;background:none;padding:.1rem 0;margin-bottom:6px}
figure details{margin:.2rem 0 0;font-size:.85rem}figure .box{max-height:320px;overflow:auto}
figure table{font-size:.8rem}figure th,figure td{padding:.25rem .5rem}
:focus-visible{outline:3px solid #3a8fd9;outline-offset:2px}
@media (max-width:700px){header,main{padding-left:12px;padding-right:12px}h1{font-size:1.5rem}
dl.grid{grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:.4rem 1rem}
.charts{grid-template-columns:minmax(0,1fr)}
.legend{font-size:.78rem;gap:0 .7rem;padding:.35rem .5rem}
figure{padding:6px 4px}th,td{padding:.4rem .6rem}
tbody th{position:sticky;left:0;background:var(--card)}}
@media print{@page{margin:12mm}:root{--ink:#000;--soft:#444;--back:#fff;--card:#fff;--rule:#bbb}
body{font-size:10.5pt}header,main{padding:0;max-width:none}.legend{position:static}
.box{overflow:visible}table{font-size:7.6pt}th,td{padding:3px 4px;white-space:normal}
.charts{grid-template-columns:1fr 1fr;gap:8px}.legend,.box:not(:has(dl)){break-inside:avoid}
dl.grid{grid-template-columns:repeat(3,1fr);padding:.5rem}.legend{break-after:avoid}
h2{margin:1.2rem 0 .4rem}.prose{max-width:none}.prose li{margin:.1rem 0}details{margin:0}
tr,li,dl.grid>div{break-inside:avoid}h2,h3,summary{break-after:avoid}}
"""


def style_sheet() -> str:
    """The page's rules, with the colours of its charts."""
    return CSS + theme_css()
