"use strict";
const root = document.documentElement;
const world = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const color = (instance) => (instance === null || instance > 200 ? "var(--other)" : `var(--i${instance % 7})`);
const name = (account) => (account === null ? "lock" : `a${account}`);
const view = { from: 0, to: world.end };
let only = null;

// ---- time ----
const pad = (n, width) => String(n).padStart(width, "0");
function clock(ms, fine = true) {
  ms = Math.max(0, Math.round(ms));
  const hms = `${Math.floor(ms / 3600000)}:${pad(Math.floor(ms / 60000) % 60, 2)}:${pad(Math.floor(ms / 1000) % 60, 2)}`;
  return fine ? `${hms}.${pad(ms % 1000, 3)}` : hms;
}
function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
  if (ms < 3600000) return `${Math.floor(ms / 60000)} min ${Math.floor(ms / 1000) % 60} s`;
  return `${Math.floor(ms / 3600000)} h ${Math.floor(ms / 60000) % 60} min`;
}
const lasting = (s) => `${clock(s.from)} to ${clock(s.to)} (${span(s.to - s.from)})`;

// ---- shapes ----
let width = 1000;
const x = (at) => ((at - view.from) / (view.to - view.from)) * width;
const at = (px) => view.from + (px / width) * (view.to - view.from);
function shape(tag, attributes, tip, account) {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (tip) element.tip = tip;
  if (only !== null && account !== undefined && account !== null && account !== only) element.classList.add("dim");
  return element;
}
// Draws what lasts from `s.from` to `s.to`, and says between which pixels it can be seen.
function rect(into, s, y, height, attributes, tip, least = 1.5, account = s.account) {
  if (s.to < view.from || s.from > view.to) return null;
  const left = Math.max(-4, x(s.from)), right = Math.min(width + 4, x(s.to));
  into.append(shape("rect", { x: left, y, width: Math.max(least, right - left), height, ...attributes }, tip, account));
  return { left: Math.max(0, left), right: Math.min(width, right) };
}
const wide = (text, cls) => text.length * (cls.includes("small") ? 4.9 : 6.2);
function label(into, place, y, text, cls, account) {
  if (!place || place.right - place.left < wide(text, cls) + 5) return;
  const element = shape("text", { x: place.left + 4, y, class: cls }, null, account);
  element.textContent = text;
  into.append(element);
}

// ---- lanes: each draws itself, and has a height, which drawing can change ----
const lanes = [];
function lane(id, height, rows, draw) {
  const section = document.querySelector(`[data-lane="${id}"]`);
  const svg = document.createElementNS(NS, "svg");
  section.querySelector(".plot").append(svg);
  for (const [y, text, size] of rows) {
    const row = document.createElement("span");
    row.style.top = `${y}px`;
    row.style.fontSize = `${size}px`;
    row.textContent = text;
    section.querySelector(".rows").append(row);
  }
  lanes.push({ svg, height, draw });
  return section;
}
const rowHeight = (n) => (n <= 4 ? 17 : n <= 10 ? 13 : 9);
const rowLabels = (whats, top, h) => whats.map((what, i) => [top + i * h + h / 2 - Math.min(10, h) / 2, name(what), Math.min(10, h)]);
const rowsOf = (whats, top, h) => new Map(whats.map((what, i) => [what, top + i * h]));
const unique = (list) => [...new Set(list)].sort((a, b) => (a === null ? -1 : a) - (b === null ? -1 : b));
const STRIP = 18;

// Faults: those of one family together, packed into as few rows as this stretch needs.
const families = ["process", "store", "whatsapp", "phone"];
const faults = world.faults.slice().sort((a, b) => a.from - b.from || b.to - a.to);
const whom = (f) => (f.instance !== null ? `i${f.instance}` : f.account !== null ? `a${f.account}` : "all");
const faultTip = (f) => `Fault: ${f.text}\n${lasting(f)}`;
lane("faults", 0, [], (svg) => {
  const placed = [];
  let rows = 0;
  for (const family of families) {
    const ends = [];
    for (const fault of faults) {
      if (fault.family !== family || fault.to < view.from || fault.from > view.to) continue;
      let row = ends.findIndex((end) => end <= fault.from);
      if (row < 0) row = ends.length;
      ends[row] = fault.to + (view.to - view.from) / 400;
      placed.push([fault, rows + row]);
    }
    rows += ends.length;
  }
  const small = rows > 10, h = small ? 10 : 14;
  for (const [fault, row] of placed) {
    const y = 4 + row * h, cls = `fault ${fault.family}${fault.chance ? " chance" : ""}`;
    const place = rect(svg, fault, y, h - 2, { class: cls }, faultTip(fault), 3, null);
    label(svg, place, y + h - (small ? 3.5 : 4.3), `${fault.name} · ${whom(fault)}`, small ? "name small" : "name");
  }
  return Math.max(42, rows * h + 8);
});

for (const instance of world.instances) {
  const id = instance.id;
  const holds = instance.holds.filter((hold) => !(world.shared && hold.account === null));
  const rows = unique(holds.map((hold) => hold.account));
  const h = rowHeight(rows.length), top = 4;
  const height = Math.max(42, top + rows.length * h + STRIP + 2);
  const y = rowsOf(rows, top, h);
  const marks = world.marks.filter((mark) => mark.instance === id);
  const section = lane(`i${id}`, height, rowLabels(rows, top, h), (svg) => {
    for (const mode of instance.modes) {
      const said = mode.is === "down" ? mode.text : `is ${mode.text}`;
      rect(svg, mode, 0, height, { class: `mode ${mode.is}` }, `Instance ${id} ${said}\n${lasting(mode)}`);
    }
    for (const fault of faults) {
      if (fault.instance !== id || fault.family === "process") continue;
      shade(svg, fault, 0, height);
    }
    for (const hold of holds) {
      const row = y.get(hold.account);
      const what = hold.account === null ? "hold the lock" : `own account ${hold.account}`;
      const tip = `Instance ${id} believes to ${what}, epoch ${hold.epoch}\n${lasting(hold)}`;
      const place = rect(svg, hold, row + 1, h - 2, { class: h > 9 ? "bar" : "bar thin", style: `--c:${color(id)}` }, tip);
      if (!place) continue;
      const cls = h > 9 ? "epoch" : "epoch small";
      const long = `${name(hold.account)} · epoch ${hold.epoch}`;
      const text = h > 9 && place.right - place.left > wide(long, cls) + 8 ? long : `e${hold.epoch}`;
      label(svg, place, row + h / 2 + (h > 9 ? 3.4 : 2.8), text, cls, hold.account);
    }
    for (const link of instance.links) {
      if (!y.has(link.account)) continue;
      const tip = `Account ${link.account} is connected to WhatsApp by instance ${id}\n${lasting(link)}`;
      rect(svg, link, y.get(link.account) + h - (h > 9 ? 4 : 3), h > 9 ? 3 : 2, { class: "link", style: `--c:${color(id)}` }, tip);
    }
    for (const run of instance.runs) {
      if (!y.has(run.account)) continue;
      const tip = `Account ${run.account}: ${world.texts[run.text]}\n${lasting(run)}`;
      rect(svg, run, y.get(run.account) + 1, h > 9 ? 4 : 3, { class: run.recent ? "run recent" : "run" }, tip, 2);
    }
    for (const [from, to] of instance.pauses) {
      const tip = `Instance ${id} is paused: none of its code runs, and what it believes can lapse\n${lasting({ from, to })}`;
      rect(svg, { from, to }, 0, height, { class: "pause" }, tip, 2, null);
    }
    drawMarks(svg, marks, height - 2, STRIP - 3);
  });
  section.style.setProperty("--c", color(id));
}

{
  const whats = unique([...world.owners.map((bar) => bar.account), ...world.accounts]).filter((what) => !(world.shared && what === null));
  const h = rowHeight(whats.length), top = 4;
  const height = top + whats.length * h + STRIP + 2;
  const y = rowsOf(whats, top, h);
  const marks = world.marks.filter((mark) => mark.instance === null);
  lane("store", height, rowLabels(whats, top, h), (svg) => {
    for (const fault of faults) {
      if (fault.family === "store" && fault.instance === null) {
        shade(svg, fault, 0, height);
      }
    }
    for (const bar of world.owners) {
      if (!y.has(bar.account)) continue;
      const row = y.get(bar.account);
      const what = bar.account === null ? "the lock" : `account ${bar.account}`;
      const who = bar.instance === null ? "somebody else" : `instance ${bar.instance}`;
      const tip = `The store says: ${what} belongs to ${who}, epoch ${bar.epoch}\n${lasting(bar)}`;
      const place = rect(svg, bar, row + 1, h - 2, { class: "owner", style: `--c:${color(bar.instance)}` }, tip);
      const text = bar.instance === null ? `e${bar.epoch}` : `i${bar.instance} · e${bar.epoch}`;
      label(svg, place, row + h / 2 + (h > 9 ? 3.4 : 2.8), text, h > 9 ? "epoch over" : "epoch over small", bar.account);
    }
    drawMarks(svg, marks, height - 2, STRIP - 3);
  });
}
{
  const h = rowHeight(world.accounts.length), top = 4;
  const height = Math.max(44, top * 2 + world.accounts.length * h);
  const y = rowsOf(world.accounts, top, h);
  lane("phones", height, rowLabels(world.accounts, top, h), (svg) => {
    for (const fault of faults) {
      if ((fault.family !== "phone" && fault.family !== "whatsapp") || fault.instance !== null) continue;
      const row = fault.account === null ? top : y.get(fault.account);
      const tall = fault.account === null ? world.accounts.length * h : h;
      if (row !== undefined) shade(svg, fault, row, tall);
    }
    for (const row of y.values()) svg.append(shape("line", { x1: 0, x2: width, y1: row + h / 2, y2: row + h / 2, class: "grid" }));
    for (const ask of world.asks) {
      if (!y.has(ask.account)) continue;
      const silent = ask.messages === null;
      const came = silent ? "no answer came" : `it answered with ${ask.messages} messages after ${span(ask.to - ask.from)}`;
      const tip = `Instance ${ask.instance} asked the phone of account ${ask.account} for history; ${came}\n${clock(ask.from)}`;
      rect(svg, ask, y.get(ask.account) + h / 2 - 3, 6, { class: silent ? "ask silent" : "ask", style: `--c:${color(ask.instance)}` }, tip, 3);
    }
  });
}

// A fault behind what it strikes: shaded if it holds all the time, else only along the upper edge.
function shade(svg, fault, y, height) {
  if (fault.chance) rect(svg, fault, y, 3, { class: `fault strip ${fault.family}` }, faultTip(fault), 2, null);
  else rect(svg, fault, y, height, { class: `fault behind ${fault.family}` }, faultTip(fault), 2, null);
}

// Commits as columns, everything else as signs above them; what is too near is drawn as one.
function drawMarks(svg, marks, bottom, height) {
  const columns = new Map(), signs = new Map();
  for (const mark of marks) {
    if (mark.at < view.from || mark.at > view.to) continue;
    const px = x(mark.at), commit = mark.kind === "commit";
    const into = commit ? columns : signs;
    const key = commit ? Math.round(px / 2) : `${mark.kind} ${Math.round(px / 8)}`;
    if (into.has(key)) into.get(key).marks.push(mark);
    else into.set(key, { px, marks: [mark] });
  }
  const tip = (found, what) => {
    const lines = found.marks.slice(0, 6).map((mark) => `${clock(mark.at)} ${world.texts[mark.text]}`);
    const rest = found.marks.length - lines.length;
    return (found.marks.length > 1 ? `${found.marks.length} ${what}\n` : "") + lines.join("\n") + (rest > 0 ? `\n… and ${rest} more: zoom in` : "");
  };
  for (const found of columns.values()) {
    const tall = Math.min(height, 4 + Math.log2(found.marks.length) * 2.2);
    svg.append(shape("rect", { x: found.px, y: bottom - tall, width: 1.6, height: tall, class: "mark commit" }, tip(found, "commits")));
  }
  const kinds = { refused: "refused commits", unknown: "commits with unknown outcome", late: "commits that came late or twice", asked: "requests by people", event: "events" };
  for (const [kind, words] of Object.entries(kinds)) {
    for (const found of signs.values()) {
      if (found.marks[0].kind !== kind) continue;
      const text = tip(found, words), px = found.px, y = bottom - height / 2;
      if (kind === "event") svg.append(shape("path", { d: `M${px} ${y - 5} l5 5 l-5 5 l-5 -5Z`, class: "mark event" }, text));
      else if (kind === "asked") svg.append(shape("path", { d: `M${px - 5} ${y - 4} h10 l-5 8Z`, class: "mark asked" }, text));
      else {
        const cy = y + { refused: 4, unknown: 0, late: -4 }[kind];
        svg.append(shape("circle", { cx: px, cy, r: Math.min(3.6, 2.2 + Math.log2(found.marks.length) * 0.3), class: `mark ${kind}` }, text));
      }
    }
  }
}

// ---- axis, overview ----
const axis = document.querySelector(".axis .plot"), overview = document.querySelector(".overview .plot");
const axisSvg = axis.appendChild(document.createElementNS(NS, "svg"));
const overSvg = overview.appendChild(document.createElementNS(NS, "svg"));
axisSvg.setAttribute("height", 36);
overSvg.setAttribute("height", 34);
const violationTip = (flag) => `${flag.check} violated at ${clock(flag.at)}: ${flag.text}\nIt must be that ${flag.says}`;
const visible = (moment) => moment >= view.from && moment <= view.to;
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 15000, 30000, 60000, 120000, 300000, 600000, 900000, 1800000, 3600000, 7200000, 14400000, 28800000];
function ticks() {
  const least = ((view.to - view.from) / width) * 92;
  const step = STEPS.find((candidate) => candidate >= least) ?? 86400000;
  const list = [];
  for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) list.push(t);
  return { list, fine: step < 1000 };
}
function drawAxis({ list, fine }) {
  axisSvg.replaceChildren();
  for (const t of list) {
    const anchor = x(t) < 24 ? "start" : x(t) > width - 24 ? "end" : "middle";
    const text = shape("text", { x: x(t), y: 31, class: "ticktext", "text-anchor": anchor });
    text.textContent = clock(t, fine);
    axisSvg.append(text);
  }
  if (visible(world.quiet_from)) {
    const px = x(world.quiet_from), late = px > width - 260;
    const text = shape("text", { x: late ? px - 5 : px + 5, y: 13, class: "quiettext", "text-anchor": late ? "end" : "start" });
    text.textContent = late ? "faults stop here, all has to heal ▸" : "◂ faults stop here: from now on all has to heal";
    axisSvg.append(text);
  }
  let free = -Infinity;
  for (const flag of world.violations.filter((flag) => visible(flag.at))) {
    const px = x(flag.at), size = flag.check.length * 7 + 8;
    axisSvg.append(shape("line", { x1: px, x2: px, y1: 16, y2: 36, class: "violation" }));
    if (px < free) continue;
    const left = Math.min(px, width - size);
    free = left + size + 2;
    axisSvg.append(shape("rect", { x: left, y: 2, width: size, height: 14, rx: 3, class: "flag" }, violationTip(flag)));
    const text = shape("text", { x: left + 4, y: 12.5, class: "flagtext" });
    text.textContent = flag.check;
    axisSvg.append(text);
  }
}
function drawOverview() {
  overSvg.replaceChildren();
  const ox = (t) => (t / world.end) * width;
  const slots = new Array(Math.max(1, Math.floor(width / 4))).fill(0);
  for (const mark of world.marks) slots[Math.min(slots.length - 1, Math.floor((mark.at / world.end) * slots.length))] += 1;
  const most = Math.max(1, ...slots);
  slots.forEach((n, i) => {
    const tall = Math.sqrt(n / most) * 18;
    overSvg.append(shape("rect", { x: i * 4, y: 34 - tall, width: 3, height: tall, class: "mark commit" }));
  });
  for (const fault of faults) {
    overSvg.append(shape("rect", { x: ox(fault.from), y: 1 + families.indexOf(fault.family) * 3.5, width: Math.max(2, ox(fault.to) - ox(fault.from)), height: 2.5, class: `fault strip ${fault.family}` }));
  }
  overSvg.append(shape("line", { x1: ox(world.quiet_from), x2: ox(world.quiet_from), y1: 0, y2: 34, class: "quiet" }));
  for (const flag of world.violations) overSvg.append(shape("line", { x1: ox(flag.at), x2: ox(flag.at), y1: 0, y2: 34, class: "violation" }));
  if (view.to - view.from < world.end) {
    overSvg.append(shape("rect", { x: ox(view.from), y: 0.5, width: Math.max(3, ox(view.to) - ox(view.from)), height: 33, class: "brush" }));
  }
}

// ---- all of it ----
function draw() {
  width = axis.clientWidth || 1000;
  const times = ticks();
  const flags = world.violations.filter((flag) => visible(flag.at));
  for (const { svg, height: usual, draw: own } of lanes) {
    svg.replaceChildren();
    const height = own(svg) ?? usual;
    svg.setAttribute("height", height);
    const line = (t, cls, tip) => svg.append(shape("line", { x1: x(t), x2: x(t), y1: 0, y2: height, class: cls, ...(tip ? {} : { "pointer-events": "none" }) }, tip));
    for (const t of times.list) line(t, "grid");
    if (visible(world.quiet_from)) line(world.quiet_from, "quiet", "Faults stop here; from now on everything has to heal");
    for (const flag of flags) line(flag.at, "violation", violationTip(flag));
  }
  drawAxis(times);
  drawOverview();
  document.querySelector(".range").textContent = `${clock(view.from, false)} – ${clock(view.to, false)} (${span(view.to - view.from)})`;
  tell();
}
let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
function show(from, to) {
  const length = Math.min(world.end, Math.max(20, to - from));
  view.from = Math.max(0, Math.min(world.end - length, from));
  view.to = view.from + length;
  redraw();
}
function zoom(factor, center = (view.from + view.to) / 2) {
  show(center - (center - view.from) * factor, center + (view.to - center) * factor);
}

// ---- the story of this stretch ----
const ALARM = 3, PLAIN = 2, DETAIL = 1, MOST = 250;
const list = document.querySelector(".story ol"), details = document.querySelector(".details");
function tell() {
  const least = details.checked ? DETAIL : PLAIN;
  const about = only === null ? null : new RegExp(`\\ba${only}\\b`);
  const told = world.notes.filter((note) => note.weight >= least && visible(note.at) && (note.weight === ALARM || !about || about.test(world.texts[note.text])));
  list.replaceChildren(...told.slice(0, MOST).map((note) => {
    const item = document.createElement("li"), time = document.createElement("time"), who = document.createElement("b"), text = document.createElement("span");
    time.textContent = clock(note.at);
    who.textContent = note.who;
    if (note.instance !== null) who.style.setProperty("--c", color(note.instance));
    text.textContent = world.texts[note.text];
    if (note.weight === ALARM) item.className = "alarm";
    else if (text.textContent.startsWith("FAULT")) item.className = "fault";
    item.append(time, who, text);
    item.onclick = () => {
      const half = Math.min(30000, (view.to - view.from) / 4);
      show(note.at - half, note.at + half);
      scrollTo({ top: 0, behavior: "smooth" });
    };
    return item;
  }));
  if (told.length > MOST) {
    const more = document.createElement("li");
    more.className = "more";
    more.textContent = `… and ${told.length - MOST} more: zoom in`;
    list.append(more);
  }
}
details.onchange = tell;

// ---- hands ----
const tip = document.querySelector(".tip");
const plots = [...document.querySelectorAll(".plot")];
const cursors = plots.filter((plot) => plot !== overview).map((plot) => {
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  cursor.hidden = true;
  plot.append(cursor);
  return cursor;
});
document.addEventListener("mousemove", (event) => {
  const plot = event.target.closest?.(".plot");
  for (const cursor of cursors) cursor.hidden = !plot || plot === overview;
  if (!plot) { tip.hidden = true; return; }
  const px = event.clientX - plot.getBoundingClientRect().left;
  for (const cursor of cursors) cursor.style.left = `${px}px`;
  const text = event.target.tip ?? (plot === axis ? clock(at(px)) : null);
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.max(4, Math.min(innerWidth - tip.offsetWidth - 8, event.clientX + 14))}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
});
for (const plot of plots) {
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, at(event.clientX - plot.getBoundingClientRect().left));
  }, { passive: false });
  plot.addEventListener("dblclick", (event) => {
    if (plot !== overview) zoom(0.4, at(event.clientX - plot.getBoundingClientRect().left));
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const left = plot.getBoundingClientRect().left, start = event.clientX - left, { from, to } = view;
    plot.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const px = moved.clientX - left;
      if (plot === overview) {
        const [a, b] = [start, px].sort((p, q) => p - q).map((p) => (p / width) * world.end);
        if (b - a > world.end / 500) show(a, b);
      } else {
        const by = ((start - px) / width) * (to - from);
        show(from + by, to + by);
      }
    };
    plot.addEventListener("pointermove", move);
    plot.addEventListener("pointerup", (released) => {
      plot.removeEventListener("pointermove", move);
      const px = released.clientX - left;
      if (plot === overview && Math.abs(px - start) < 3) {
        const half = (to - from) / 2, center = (px / width) * world.end;
        show(center - half, center + half);
      }
    }, { once: true });
  });
}
const quarter = () => (view.to - view.from) / 4;
const actions = {
  in: () => zoom(0.5), out: () => zoom(2), all: () => show(0, world.end),
  left: () => show(view.from - quarter(), view.to - quarter()),
  right: () => show(view.from + quarter(), view.to + quarter()),
};
for (const button of document.querySelectorAll("[data-zoom]")) button.onclick = actions[button.dataset.zoom];
for (const button of document.querySelectorAll("[data-violation]")) {
  const flag = world.violations[button.dataset.violation];
  button.onclick = () => show(flag.at - 45000, flag.at + 15000);
}
document.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input")) return;
  const action = { "+": "in", "=": "in", "-": "out", "0": "all", ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (action && !event.ctrlKey && !event.metaKey) { actions[action](); event.preventDefault(); }
});
const select = document.querySelector(".account");
for (const account of world.accounts) select.append(new Option(`a${account}`, account));
select.onchange = () => { only = select.value === "" ? null : Number(select.value); redraw(); };
const dark = matchMedia("(prefers-color-scheme: dark)");
root.dataset.theme = dark.matches ? "dark" : "light";
dark.onchange = () => { root.dataset.theme = dark.matches ? "dark" : "light"; };
document.querySelector(".theme").onclick = () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; };
const hatch = document.createElementNS(NS, "svg");
hatch.setAttribute("style", "position:absolute;width:0;height:0");
hatch.innerHTML = '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="7" height="7" fill="var(--down)"></rect><line x1="0" y1="0" x2="0" y2="7" stroke="var(--down-line)" stroke-width="3"></line></pattern></defs>';
document.body.prepend(hatch);
addEventListener("resize", redraw);
// A stretch can be linked to: #from-to in milliseconds, then a comma and `dark` or `light`.
const [stretch, theme] = location.hash.slice(1).split(",");
if (theme === "dark" || theme === "light") root.dataset.theme = theme;
const linked = /^(\d+)-(\d+)$/.exec(stretch);
if (linked && Number(linked[1]) < Number(linked[2])) show(Number(linked[1]), Number(linked[2]));
draw();
