"""The page of the report as templates: style and script inside, nothing from elsewhere."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1c2127; --soft: #68727d; --line: #dfe3e8; --ground: #f6f7f9; --card: #fff; --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #98a2ad; --line: #333a42; --ground: #14171b; --card: #1d2126; --mark: #fb923c; }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1500px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem } h3 { font-size: 1rem; margin: 0 }
h3, p, td:first-child { overflow-wrap: anywhere }
p { margin: .3rem 0 } .soft, .note, figcaption { color: var(--soft) }
table { border-collapse: collapse; margin: 1rem 0; background: var(--card) }
th, td { border: 1px solid var(--line); padding: .25rem .7rem; text-align: right } th { font-weight: 600 }
th:first-child, td:first-child { text-align: left } .quoted { color: var(--soft) } .quoted i { font-size: .8em }
tr:not(.quoted) td { font-weight: 500 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(1000px, 100%), 1fr)); gap: .9rem }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); gap: .9rem }
.two h3 { margin-bottom: .5rem }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-bottom: .4rem;
  font-size: .85rem }
figcaption b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; font-size: .75rem; color: var(--soft) }
.panels img { display: block; width: 100%; height: 100%; border-radius: 4px }
.frame { position: relative; overflow: hidden; border-radius: 4px }
.wipe .over { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0) }
.wipe::after { content: ""; position: absolute; top: 0; bottom: 0; left: calc(var(--at) - 1px); width: 2px;
  background: var(--mark) }
input[type=range] { width: 100%; margin: .15rem 0 0; accent-color: var(--mark) }
section { margin-top: 1.6rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.scores { display: flex; flex-wrap: wrap; gap: 0 1.4rem; margin: .2rem 0 .6rem; color: var(--soft) }
.scores b { color: var(--ink) }
.strip { display: flex; flex-wrap: wrap; gap: 4px; margin: .3rem 0 .9rem }
.strip img { height: 72px; border-radius: 3px }
.ramp { display: inline-block; width: 9rem; height: .7rem; border-radius: 3px; vertical-align: -1px; background:
  linear-gradient(90deg, #000004, #420a68, #932667, #dd513a, #fca50a, #fcffa4) }
a { color: inherit } summary { cursor: pointer; color: var(--soft); margin-top: .6rem }
</style>
<h1>$title</h1>
<p class=soft>$facts</p>
$summary
$notes
<p class=soft>Move a slider to wipe the photo over the render. Error: mean absolute difference of the channels,
0 <span class=ramp></span> $range and more. Made $made.</p>
<h2>Worst and best images</h2>
<div class=two>
<div><h3>worst</h3><div class=cards>
$worst
</div></div>
<div><h3>best</h3><div class=cards>
$best
</div></div>
</div>
<h2>Scenes, worst first</h2>
$contents
$scenes
<script>
document.addEventListener("input", event => {
  const frame = event.target.closest(".panel")?.querySelector(".wipe");
  if (frame) frame.style.setProperty("--at", event.target.value + "%");
});
</script>
</html>
""")

CARD = Template("""<figure>
<figcaption><b>$scene / $target</b><span>$scores</span></figcaption>
<div class=panels>
<div>photo<div class=frame style="aspect-ratio: $ratio"><img loading=lazy src="$photo" alt="photo"></div></div>
<div class=panel>photo | render<div class="frame wipe" style="aspect-ratio: $ratio; --at: 0%">
<img loading=lazy src="$render" alt="render"><img class=over loading=lazy src="$photo" alt="photo"></div>
<input type=range min=0 max=100 step=0.5 value=0 aria-label="photo over render"></div>
<div>error<div class=frame style="aspect-ratio: $ratio"><img loading=lazy src="$error" alt="error"></div></div>
</div>
</figure>""")

SCENE = Template("""<section id="$anchor">
<h3>$scene</h3>
<div class=scores>$scores<span>$times</span></div>
$notes
<div class=strip aria-label="$count inputs">$inputs</div>
<div class=cards>
$cards
</div>
<details><summary>all $targets targets</summary><table><tr><th>target</th>$head</tr>$rows</table></details>
</section>""")
