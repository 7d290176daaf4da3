"""What makes the page of a scan look and work as it does; no file beside it, nothing fetched."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --panel: #f5f6f8; --line: #d3d7de; --text: #1c2025;
  --soft: #57606b; --mark: #ffe27a; --on-mark: #1c1a10; --link: #0a53c2; --dropped: #a3161c;
  --cut: #7a4d00; --kept: #1a6334; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --panel: #1e2328; --line: #3b424b;
  --text: #e7eaee; --soft: #a7b0bb; --mark: #6a5200; --on-mark: #fff7da; --link: #8ab8ff;
  --dropped: #ff9a9a; --cut: #f0bd62; --kept: #86d79e; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2rem 0 .5rem; }
h1 { font-size: 1.6rem; margin-top: 0; } h2 { font-size: 1.3rem; } h3 { font-size: 1.1rem; }
h3 small { font-weight: normal; color: var(--soft); }
p, ul { margin: .5rem 0; }
.note { color: var(--soft); }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; max-width: 24rem; }
th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--back); }
@media (max-width: 48rem) { th:first-child { min-width: 9rem; max-width: 9rem;
  overflow-wrap: anywhere; } }
td:not(.right) { overflow-wrap: anywhere; min-width: 8rem; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
.right { text-align: right; white-space: nowrap; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: 1rem 0;
  padding: .75rem 1rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: .5rem; }
@media (min-width: 48rem) and (min-height: 40rem) {
  form { position: sticky; top: 0; z-index: 1; }
  h3 { scroll-margin-top: 7rem; } }
label { display: grid; flex: 1 1 8rem; gap: .1rem; font-size: .875rem; color: var(--soft); }
label.wide { flex-grow: 3; flex-basis: 14rem; }
select, input, button { width: 100%; min-width: 0; height: 2.5rem; padding: 0 .5rem; font: inherit;
  color: var(--text); background: var(--back); border: 1px solid var(--soft);
  border-radius: .25rem; }
::placeholder { color: var(--soft); opacity: 1; }
button { flex: 0 0 auto; width: auto; padding: 0 1rem; cursor: pointer; }
output { flex: 1 0 100%; font-size: .875rem; }
article { margin: .75rem 0; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .5rem; content-visibility: auto; contain-intrinsic-size: auto 18rem; }
h4 { font-size: 1rem; margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .25rem .75rem;
  align-items: baseline; }
.tag { padding: 0 .5rem; border: 1px solid currentcolor; border-radius: 1rem; font-size: .8125rem;
  font-weight: 500; color: var(--soft); }
.tag.dropped { color: var(--dropped); } .tag.cut { color: var(--cut); }
.tag.kept { color: var(--kept); }
.pair { display: grid; gap: .75rem 1.5rem; }
@media (min-width: 48rem) { .pair { grid-template-columns: 1fr 1fr; } }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; font-weight: 600; color: var(--soft); }
blockquote { margin: .25rem 0 .5rem; padding: .5rem .75rem; background: var(--panel);
  border-radius: .25rem; font-family: Georgia, "Noto Serif", serif; color: var(--soft); }
mark { background: var(--mark); color: var(--on-mark); padding: .1em 0; border-radius: .15em;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
i[data-c] { font-style: normal; }
i[data-c]::after { content: attr(data-c); font: .75em ui-monospace, monospace; opacity: .8; }
dl { margin: 0; font-size: .8125rem; display: grid; grid-template-columns: max-content 1fr;
  gap: .1rem .75rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
dd.code { font-family: ui-monospace, monospace; }
@media print { form { display: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const form = document.querySelector("form");
if (form) {
  const cards = [...document.querySelectorAll("article")];
  const groups = [...document.querySelectorAll("section.group")];
  const chosen = ["scenario", "source", "rule", "decision"].map((name) => form.elements[name]);
  const wanted = form.elements.text;
  const texts = new Map();
  const fold = (text) => text.replace(/\\s+/g, " ").trim().toLowerCase();
  const textOf = (card) => {
    if (!texts.has(card)) texts.set(card, fold(card.textContent));
    return texts.get(card);
  };
  const apply = () => {
    const phrase = fold(wanted.value);
    let shown = 0;
    for (const card of cards) {
      card.hidden = chosen.some((c) => c.value && card.dataset[c.name] !== c.value)
        || Boolean(phrase) && !textOf(card).includes(phrase);
      if (!card.hidden) shown += 1;
    }
    for (const group of groups) group.hidden = !group.querySelector("article:not([hidden])");
    const numbers = [shown, cards.length].map((n) => n.toLocaleString("en"));
    form.querySelector("output").value = `${numbers[0]} of ${numbers[1]} passages`;
  };
  let timer;
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  for (const c of chosen) c.addEventListener("change", apply);
  wanted.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 150); });
  apply();
}
"""
