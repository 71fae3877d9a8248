"""How exhibits look on the page, and what moves in them: added to the page's own style and script where it has exhibits."""

HUES = 8  # of series; further ones take them again, dashed


def hues(number: int) -> str:
    """Returns the CSS classes of the series `number`."""
    return f"series s{number % HUES}" + (" dashed" if number // HUES % 2 else "")


STYLE = """
:root {
  --c0: #2f6fde; --c1: #c9650a; --c2: #1a8a5a; --c3: #8a4fd3; --c4: #c83349; --c5: #0d8a9c; --c6: #8a6a1f; --c7: #6b7078;
  --good: #1a7f4b; --bad: #c2293c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --c0: #79a9ff; --c1: #ffa657; --c2: #5fd3a0; --c3: #c3a0ff; --c4: #ff8a95; --c5: #5fd0e0; --c6: #d9bb6a; --c7: #9aa0a8;
    --good: #5fd39a; --bad: #ff8590;
  }
}
.s0 { --hue: var(--c0); } .s1 { --hue: var(--c1); } .s2 { --hue: var(--c2); } .s3 { --hue: var(--c3); }
.s4 { --hue: var(--c4); } .s5 { --hue: var(--c5); } .s6 { --hue: var(--c6); } .s7 { --hue: var(--c7); }
.line.series, .gap { stroke: var(--hue); } .line.dashed, .box.dashed { stroke-dasharray: 7 4; }
.band { fill: var(--hue); opacity: .18; }
circle.series, .mark { fill: var(--hue); } path.mark { opacity: .75; }
.key.series::before { background: var(--hue); }
.key.dashed::before { background: repeating-linear-gradient(90deg, var(--hue) 0 6px, transparent 6px 10px); }
.legend .series b { color: var(--hue); font-weight: 400; }
.whisker { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.ideal { stroke: var(--soft); stroke-dasharray: 4 4; } .gap { stroke-width: 2; opacity: .7; }
.exhibit .none { margin: 8px 0 0; font-size: 13px; }
.exhibit .small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); margin-top: 0; }
.exhibit > * + figure, .exhibit > * + div, .exhibit > * + ol { margin-top: 10px; }
.exhibit + details { margin-top: 32px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; align-items: start; }
.tiles.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); }
.tile { padding: 8px; }
.tile.wrong { border: 2px dashed var(--bad); padding: 7px; }
.tile img { display: block; width: 100%; height: auto; border-radius: 4px; }
.squares { image-rendering: pixelated; }
.tile figcaption { display: block; margin-top: 6px; font-weight: 400; font-size: 12.5px; overflow-wrap: anywhere; white-space: pre-line; }
.right, span.wrong { display: block; color: var(--good); } span.wrong { color: var(--bad); font-weight: 600; }
.scene { overflow: hidden; border-radius: 4px; }
.box { fill: none; stroke: var(--hue); stroke-width: 2; vector-effect: non-scaling-stroke; }
.halo { fill: none; stroke: #fff; stroke-width: 4; opacity: .8; vector-effect: non-scaling-stroke; }
text.box { fill: var(--ink); stroke: var(--card); stroke-width: 4; stroke-dasharray: none; paint-order: stroke; font-family: system-ui, sans-serif; }
.sound figcaption { display: block; font-weight: 400; overflow-wrap: anywhere; } .sound audio { display: block; width: 100%; margin: 8px 0; }
.scrolled { overflow-x: auto; padding: 10px 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.scrolled table { margin: 0; } .scrolled :is(th, td) { overflow-wrap: normal; }
.exhibit .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.data :is(th, td), .pairs :is(th, td) { border-bottom: 1px solid var(--rule); }
.pairs { width: 100%; table-layout: fixed; min-width: 560px; }
.pairs td { white-space: pre-line; overflow-wrap: anywhere; }
del { color: var(--bad); } ins { color: var(--good); text-decoration-thickness: 2px; }
.confusion caption { text-align: left; color: var(--soft); margin-bottom: 6px; }
.confusion :is(th, td) { padding: 3px 6px; border: 1px solid var(--rule); vertical-align: middle; }
.confusion tbody th { text-align: right; position: sticky; left: 0; background: var(--card); } .confusion thead th { vertical-align: bottom; }
.confusion thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
.confusion td[style] { min-width: 44px; background: color-mix(in srgb, var(--train) calc(var(--share) * 50%), var(--card)); }
.confusion small { display: block; font-size: 11px; line-height: 1.2; } .confusion .zero { color: var(--soft); }
.confusion .hit { outline: 2px solid var(--soft); outline-offset: -2px; }
.moves { list-style: none; margin: 0; padding: 0; }
.moves li { padding: 12px 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.moves li + li { margin-top: 10px; } .moves pre { white-space: pre; overflow-x: auto; } .moves p { margin: 6px 0 0; color: var(--soft); }
.moves li[hidden] { display: none; } .steps + .moves li { margin-top: 0; }
.steps { display: flex; gap: 10px; align-items: center; margin-bottom: 8px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.steps button {
  padding: 3px 12px; border: 1px solid var(--rule); border-radius: 6px; background: var(--card); color: var(--ink); font: inherit; cursor: pointer;
}
.steps button:disabled { opacity: .45; cursor: default; }
.level { white-space: pre; overflow-x: auto; letter-spacing: .5em; line-height: 1.1; }
.level span { display: inline-block; color: #fff; text-shadow: 0 0 2px #000, 0 0 2px #000; }
"""

SCRIPT = """
for (const list of document.querySelectorAll("ol.moves")) {
  const boards = [...list.children];
  if (boards.length < 2) continue;
  const bar = Object.assign(document.createElement("div"), { className: "steps" });
  const place = document.createElement("span");
  place.setAttribute("aria-live", "polite");
  let at = 0;
  const button = (text, way) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", () => go(at + way));
    return made;
  };
  const before = button("‹ previous", -1), after = button("next ›", 1);
  const go = (to) => {
    at = Math.min(boards.length - 1, Math.max(0, to));
    boards.forEach((board, i) => { board.hidden = i !== at; });
    before.disabled = at === 0; after.disabled = at === boards.length - 1;
    place.textContent = `board ${at + 1} of ${boards.length}`;
  };
  bar.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: boards.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); go(to); }
  });
  bar.append(before, after, place);
  list.before(bar);
  go(0);
}
"""
