"""The looks of the page at `/`: one style sheet, light and dark, wide and narrow. Pure."""

STAGE_HUES = {
    "resolve": 265,
    "pull": 215,
    "flatten": 190,
    "ext4": 160,
    "ownership": 130,
    "guest": 80,
    "kernel": 40,
    "publish": 15,
    "record": 330,
}
"""Stage -> hue of its part of a bar, in degrees: neighbours in the pipeline can be told apart."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --ink: #1c2024; --soft: #5b6470; --line: #dfe3e8; --track: #e6e9ee;
  --good: #1a7f4b; --bad: #c62f24; --wait: #8f5b00; --work: #1f64c8; --rest: #68707c;
  --bad-wash: #fdeeec; --wait-wash: #fdf5e3; --part-light: 46%; --part-colour: 58% }
@media (prefers-color-scheme: dark) { :root {
  --page: #101317; --card: #191d23; --ink: #e7eaee; --soft: #9aa4b1; --line: #2b313a;
  --track: #2a3038;
  --good: #4cc38a; --bad: #ff8d80; --wait: #eab54b; --work: #7cb1ff; --rest: #98a2af;
  --bad-wash: #2e1b1b; --wait-wash: #2a2317; --part-light: 60%; --part-colour: 50% } }
* { box-sizing: border-box }
body { background: var(--page); color: var(--ink); margin: 0;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif }
main { margin: 0 auto; max-width: 62rem; padding: 1.25rem 1rem 3rem }
h1 { font-size: 1.65rem; line-height: 1.2; margin: .1rem 0 .3rem; letter-spacing: -.01em }
h2 { color: var(--soft); font-size: .8rem; letter-spacing: .06em; margin: 1.8rem 0 .5rem;
  text-transform: uppercase }
h3 { font-size: 1.02rem; margin: 0; overflow-wrap: anywhere }
p { margin: .25rem 0; overflow-wrap: anywhere }
code { font: .86em ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere }
.over { color: var(--soft); font-size: .85rem } .soft { color: var(--soft) }
.small { font-size: .86rem }
.good { --tone: var(--good) } .bad { --tone: var(--bad) } .wait { --tone: var(--wait) }
.work { --tone: var(--work) } .rest { --tone: var(--rest) }
h1.good, h1.bad, h1.wait, h1.work { color: var(--tone) }
.counts { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; list-style: none; margin: .6rem 0 0;
  padding: 0; font-size: .92rem }
.counts li::before, .state::before { background: var(--tone); border-radius: 50%; content: "";
  display: inline-block; height: .6em; margin-right: .45em; width: .6em }
.note, article { background: var(--card); border: 1px solid var(--line); border-radius: .55rem;
  margin: .55rem 0; padding: .7rem .95rem }
.note, article.bad, article.wait { border-left: .3rem solid var(--tone) }
.note.bad, article.bad { background: var(--bad-wash) }
.note.wait { background: var(--wait-wash) }
.head { align-items: baseline; display: flex; flex-wrap: wrap; gap: .1rem .8rem }
.state { color: var(--tone); font-size: .92rem; font-weight: 600; white-space: nowrap }
.size { color: var(--soft); font-size: .86rem; margin-left: auto; white-space: nowrap }
.why { color: var(--tone); font-weight: 500; margin-top: .4rem }
.bar { background: var(--track); border-radius: .3rem; display: flex; gap: 1px; height: .55rem;
  margin: .6rem 0 .3rem; overflow: hidden }
.bar i { background: hsl(var(--hue) var(--part-colour) var(--part-light)); min-width: 2px }
.bar.at i { background: var(--work) }
.bar.unknown i { animation: pass 1.6s ease-in-out infinite alternate; width: 30% }
@keyframes pass { to { transform: translateX(233%) } }
@media (prefers-reduced-motion: reduce) { .bar.unknown i { animation: none } }
.stage { margin-top: .4rem } .stage .bar { margin: .25rem 0 .2rem } .stage b { font-weight: 500 }
.times { color: var(--soft); display: flex; flex-wrap: wrap; font-size: .82rem; gap: .1rem .9rem;
  list-style: none; margin: 0; padding: 0 }
.times li::before { background: hsl(var(--hue) var(--part-colour) var(--part-light));
  border-radius: .15rem; content: ""; display: inline-block; height: .65em; margin-right: .4em;
  width: .65em }
.past { border-left: 2px solid var(--line); color: var(--soft); font-size: .82rem; list-style: none;
  margin: .5rem 0 .1rem; padding: 0 0 0 .7rem }
.past b { color: var(--tone); font-weight: 600 }
footer { color: var(--soft); font-size: .82rem; margin-top: 2rem }
footer a { color: inherit }
@media (max-width: 34rem) { h1 { font-size: 1.35rem } .size { margin-left: 0; width: 100% }
  main { padding: .9rem .7rem 2rem } }
"""
