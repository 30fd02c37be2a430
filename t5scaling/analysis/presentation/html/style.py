"""How the page looks: dark on white, one column on a phone, and on paper."""

CSS = """
:root { color-scheme: light; --quiet: #555; --line: #ddd; }
* { box-sizing: border-box; }
html { scroll-padding-top: .5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem 1.4rem 4rem; max-width: 76rem; background: #fff;
  color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .15rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-top: .6rem;
  border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .3rem; overflow-wrap: anywhere; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
section > p, section > ul, details > p, details > ul, .text { max-width: 46rem; }
a { color: #00609a; }
.quiet { color: var(--quiet); font-size: .875rem; }
.lead { color: var(--quiet); margin: 0 0 .6rem; font-size: .95rem; }

.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .3rem 0 .2rem;
  font-size: .85rem; max-width: none !important; }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .35em; }
.key i.hollow { background: #fff; border: 2px solid #1a1a1a; }
.panels { display: grid; gap: .5rem 1.1rem; grid-template-rows: repeat(2, auto);
  grid-auto-flow: column; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.panels.rows { grid-auto-flow: row; grid-template-rows: none; }
.panel { margin: 0; min-width: 0; }
.panel.none { color: var(--quiet); font-size: .8rem; align-self: center; }
.panel figcaption { font-size: .85rem; color: #333; line-height: 1.25; margin: 0 0 .3rem; }
.plot { position: relative; height: 9.2rem; margin: .35rem 3.6rem 1.2rem 2.3rem;
  border-bottom: 1px solid #888; font-size: 12px; line-height: 1; }
.plot > svg { position: absolute; inset: 0; overflow: visible; }
.plot span { position: absolute; white-space: nowrap; }
.plot .y { right: 100%; transform: translateY(-50%); padding-right: .35em; color: #555; }
.plot .end { left: 100%; transform: translateY(-50%); padding-left: .5em; font-weight: 600; }
.plot .x { top: 100%; transform: translateX(-50%); padding-top: .35em; color: #555; }
.plot circle { pointer-events: all; }

.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  gap: .4rem 1.6rem; margin: .4rem 0 0; }
.answers div { border-left: 4px solid #0072b2; padding-left: .7rem; }
.answers h2 { all: unset; display: block; font-weight: 700; font-size: .9rem; color: #00609a; }
.answers p { margin: .1rem 0 0; font-size: .95rem; line-height: 1.4; }
nav { margin: 1.4rem 0 0; padding: .5rem 0; border-top: 1px solid var(--line);
  border-bottom: 1px solid var(--line); font-size: .9rem; }
nav a { display: inline-block; margin: .15rem 1.1rem .15rem 0; }

.claims { display: grid; gap: .8rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.claim { border: 1px solid #ccc; border-top: 4px solid #777; border-radius: .3rem;
  padding: .6rem .8rem .7rem; min-width: 0; font-size: .92rem; line-height: 1.42; }
.claim.reproduced { border-top-color: #009e73; }
.claim.not-reproduced { border-top-color: #d55e00; }
.claim h3 { margin: 0 0 .2rem; } .claim p { margin: .35rem 0; }
.claim .paper { color: var(--quiet); }
.badge { display: inline-block; font-size: .78rem; font-weight: 700; padding: .05rem .5rem;
  border-radius: 1rem; background: #e4e4e4; color: #333; white-space: nowrap; }
.badge.reproduced { background: #cfe8dd; color: #00513a; }
.badge.not-reproduced { background: #fbdcc6; color: #7a3000; }
.open { border-bottom: 1px solid var(--line); margin: 0; padding: .45rem 0; }

.warning { background: #fff6e0; border-left: 4px solid #e69f00; padding: .1rem .9rem;
  margin: 1rem 0; max-width: 46rem; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #bbb; white-space: normal;
  vertical-align: bottom; }
.number { text-align: right; } td.wrap { white-space: normal; min-width: 9rem; }
tr.heldout td { background: #f4f6f8; }
.figures { display: grid; gap: 1.2rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
.figures > div { min-width: 0; }
.figures figure { margin: .3rem 0; } .figures img { width: 100%; max-width: 40rem; height: auto; }
.figures h3 { margin: .2rem 0; }
.word { font-weight: 600; padding: 0 .4rem; border-radius: .25rem; background: #e6e6e6; }
.word.predictable { background: #cfe8dd; } .word.inverse, .word.nonmonotonic, .word.unpredicted,
.word.breakthrough { background: #fbdcc6; }
code { font-size: .85em; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; padding: .15rem 0; }
details > details { margin-left: 1rem; }

@media (max-width: 44rem) {
  body { padding: .6rem .8rem 3rem; font-size: 15px; }
  h1 { font-size: 1.02rem; } .lead .more { display: none; }
  .lead { font-size: .8rem; line-height: 1.3; margin-bottom: .25rem; }
  .key { font-size: .74rem; gap: 0 .7rem; line-height: 1.4; }
  .panels { grid-auto-flow: row; grid-template-rows: none; gap: .1rem .4rem;
    grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .panel figcaption { font-size: .72rem; margin: 0; white-space: nowrap; overflow: hidden;
    text-overflow: ellipsis; }
  .plot { height: 4.5rem; margin: .25rem 2.7rem .95rem 1.9rem; font-size: 11px; }
  .fine { font-size: .72rem; line-height: 1.25; margin: .1rem 0; }
  .answers { gap: .25rem; } .answers div { padding-left: .5rem; }
  .answers p { font-size: .8rem; line-height: 1.27; margin: 0; }
  .answers h2 { font-size: .78rem; line-height: 1.3; }
}
@media print {
  body { max-width: none; font-size: 11pt; padding: 0; }
  figure, tr, .claim, .answers div { break-inside: avoid; } nav { display: none; }
  h2, h3 { break-after: avoid; }
}
"""
