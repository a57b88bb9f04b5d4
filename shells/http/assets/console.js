"use strict";

// One page that follows the address after the #. It reads; what changes anything, somebody has
// pressed. Nothing here asks for a backfill by itself.

const main = document.getElementById("main");
const session = { csrf: "", debug: false };
let route = { view: "accounts" };
let overview = null;
let timer = 0;
let shown = "";

const api = async (path, options = {}) => {
  const headers = { Accept: "application/json" };
  if (options.method) headers["X-CSRF-Token"] = session.csrf;
  if (options.body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: options.method || "GET",
    headers,
    body: options.body && JSON.stringify(options.body),
  });
  if (answer.status === 401) {
    location.replace("/console/login");
    throw new Error("not logged in");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message || body.error || String(answer.status));
  return body;
};

// --- Making elements ---

const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

const svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const local = (at) => (at.toDateString() === new Date().toDateString()
  ? at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
  : at.toLocaleString([], { dateStyle: "short", timeStyle: "short" }));

const time = (iso) => {
  if (!iso) return "–";
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return String(iso);
  return el("time", { datetime: iso, title: iso }, local(at));
};

/** How far from now, in words. */
const distance = (iso, now) => {
  const minutes = Math.round((new Date(iso) - new Date(now)) / 60000);
  const n = Math.abs(minutes);
  const span = n < 60 ? `${n} min` : n < 2880 ? `${Math.floor(n / 60)} h ${n % 60} min` : `${Math.round(n / 1440)} days`;
  if (n === 0) return "now";
  return minutes < 0 ? `${span} ago` : `in ${span}`;
};
const timeFrom = (iso, now) => (iso ? el("span", {}, time(iso), el("span", { class: "quiet" }, ` (${distance(iso, now)})`)) : null);

/** A sentence whose times are shown as people here read them. */
const sentence = (text) => text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, (iso) => local(new Date(iso)));

const tones = {
  active: "good", connected: "good", cooldown: "good", running: "good", due: "good",
  passive: "warn", connecting: "warn", qr_ready: "warn", awaiting_scan: "warn", backoff: "good",
  interrupted: "warn", not_paired: "warn", disabled: "warn",
};
const plain = (word) => word.replaceAll("_", " ");
const badge = (word) => el("span", { class: `badge ${tones[word] || "bad"}` }, plain(word || "unknown"));

const problem = (text) => {
  const place = document.getElementById("problem");
  place.textContent = text || "";
  place.hidden = !text;
};

/** Draws anew only what has changed, and never under somebody's fingers. */
const draw = (key, data, make) => {
  const state = key + JSON.stringify(data);
  if (state === shown) return;
  const busy = main.querySelector("details[open]") || main.contains(document.activeElement)
    && ["INPUT", "TEXTAREA"].includes(document.activeElement.tagName);
  if (busy && shown.startsWith(key)) return;
  const focused = document.activeElement && document.activeElement.id;
  const panes = [...main.querySelectorAll("[data-scroll]")].map((p) => [p.id, p.scrollTop,
    p.scrollTop + p.clientHeight >= p.scrollHeight - 8]);
  const sameView = shown.startsWith(key);
  shown = state;
  main.replaceChildren(...make());
  if (sameView) for (const [id, top] of panes) {
    const pane = document.getElementById(id);
    if (pane) pane.scrollTop = top;
  }
  // The newest message is at the bottom; whoever was there stays there.
  const messages = document.getElementById("messages");
  const before = panes.find(([id]) => id === "messages");
  if (messages && (!sameView || !before || before[2])) messages.scrollTop = messages.scrollHeight;
  if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
};

// --- Accounts ---

const press = (label, act, attributes = {}) => el("button", {
  type: "button",
  ...attributes,
  onclick: async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    try {
      await act();
      problem("");
    } catch (error) {
      problem(error.message);
    }
    button.disabled = false;
    const menu = button.closest("details");
    if (menu) menu.open = false;
    refresh();
  },
}, label);

const regenerate = (account, attributes) => press("Regenerate QR code",
  () => api(`/api/whatsapp/regenerate-qr/${encodeURIComponent(account.id)}`, { method: "POST" }), attributes);

const menu = (account) => {
  const id = encodeURIComponent(account.id);
  const items = [
    regenerate(account, { class: "plain" }),
    press("Delete account", async () => {
      if (confirm(`Log ${account.name || "this account"} out and mark it as deleted? Its messages stay.`)) {
        await api(`/api/whatsapp/accounts/${id}`, { method: "DELETE" });
      }
    }, { class: "danger" }),
  ];
  if (session.debug) {
    items.unshift(press("Sync / Backfill", () => api(`/api/whatsapp/backfill/${id}`, { method: "POST" }), { class: "plain" }));
  }
  return el("details", { class: "menu" },
    el("summary", { id: `menu-${account.masked}`, "aria-label": `More for ${account.name || account.masked}` }, "⋯"),
    el("div", {}, ...items));
};

const pairing = (account) => {
  if (account.status === "connected") return [];
  const picture = (account.qrCode || "").startsWith("data:image/")
    ? el("img", { class: "qr", src: account.qrCode, alt: "QR code to link this account" }) : null;
  const code = account.pairingCode
    ? el("p", {}, "Or type on the phone: ", el("span", { class: "code" }, account.pairingCode)) : null;
  const hint = picture || code
    ? el("p", { class: "quiet" }, "On the phone: Settings, Linked devices, Link a device.") : null;
  return [picture, code, hint].filter(Boolean);
};

const card = (account) => {
  const verdict = account.verdict || {};
  return el("li", { class: "card" },
    el("div", { class: "row" },
      el("strong", { class: "grow" }, account.name || "Without a name"), badge(account.status), menu(account)),
    el("p", { class: "quiet" }, account.phone || "no phone number", " · ", el("code", {}, account.masked)),
    ...pairing(account),
    verdict.summary ? el("p", {}, badge(verdict.state), " ", sentence(verdict.summary)) : null,
    verdict.action && verdict.action !== "Nothing." ? el("p", { class: "quiet" }, sentence(verdict.action)) : null,
    el("div", { class: "row" },
      ["needs_qr", "logged_out"].includes(account.status) ? regenerate(account, { id: `pair-${account.masked}` }) : null,
      el("a", { class: "button plain", href: `#/account/${encodeURIComponent(account.id)}/inbox`, id: `inbox-${account.masked}` }, "Inbox"),
      el("a", { class: "button plain", href: `#/account/${encodeURIComponent(account.id)}/sync`, id: `sync-${account.masked}` }, "Sync")));
};

const addForm = () => el("form", {
  class: "inline panel",
  onsubmit: async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const phone = form.phone.value.trim();
    try {
      await api("/api/whatsapp/add-account", {
        method: "POST",
        body: { name: form.elements.name.value.trim(), ...(phone ? { phone } : {}) },
      });
      problem("");
      form.reset();
      document.activeElement.blur();
      refresh();
    } catch (error) {
      problem(error.message);
    }
  },
},
el("label", {}, "Name", el("input", { name: "name", id: "new-name", required: true, maxlength: "100" })),
el("label", {}, "Phone number", el("input", { name: "phone", id: "new-phone", type: "tel", placeholder: "optional" })),
el("button", { id: "add" }, "Add account"));

const accountsView = () => draw("accounts", overview.accounts, () => [
  el("h1", {}, "Accounts"),
  overview.accounts.length
    ? el("ul", { class: "cards" }, ...overview.accounts.map(card))
    : el("p", {}, "There are no accounts yet. Add one, and scan its QR code with the phone."),
  addForm(),
]);

// --- One account ---

const tabs = (account, current) => [
  el("p", {}, el("a", { href: "#/" }, "← Accounts")),
  el("div", { class: "row" }, el("h1", { class: "grow" }, account.name || account.masked), badge(account.status)),
  el("nav", { class: "tabs", "aria-label": "Account" }, ...["inbox", "sync"].map((tab) => el("a", {
    href: `#/account/${encodeURIComponent(account.id)}/${tab}`,
    id: `tab-${tab}`,
    "aria-current": tab === current ? "page" : null,
  }, tab === "inbox" ? "Inbox" : "Sync"))),
];

const facts = (pairs) => el("dl", {}, ...pairs.flatMap(([name, value]) =>
  [el("dt", {}, name), el("dd", {}, value === null || value === undefined || value === "" ? "–" : value)]));

const table = (head, rows) => el("div", { class: "scroll" }, el("table", {},
  el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
  el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) =>
    el("td", {}, cell === null || cell === undefined ? "–" : cell)))))));

const span = (coverage, from, to, title) => {
  const width = 1000;
  const x = (second) => Math.max(0, Math.min(width, ((second - from) / (to - from || 1)) * width));
  const part = (kind, low, high) => svg("rect", {
    class: kind, x: x(low), y: 0, height: 20, width: Math.max(4, x(high) - x(low)),
  });
  const bar = svg("svg", { class: "bar", viewBox: `0 0 ${width} 20`, preserveAspectRatio: "none", role: "img" });
  bar.append(svg("title", {}, title));
  bar.append(svg("rect", { class: "ground", x: 0, y: 0, width, height: 20 }));
  coverage.stretches.forEach((stretch, i) => {
    const newest = coverage.live && stretch.to === Math.max(...coverage.stretches.map((s) => s.to));
    bar.append(part("known", coverage.complete && i === oldest(coverage) ? from : stretch.from, newest ? to : stretch.to));
  });
  for (const hole of coverage.holes) {
    bar.append(part(hole.exhausted ? "lost" : "hole", hole.after ?? from, hole.before ?? to));
  }
  return bar;
};

const oldest = (coverage) => coverage.stretches.reduce(
  (best, stretch, i, all) => (stretch.from < all[best].from ? i : best), 0);

const words = (coverage) => {
  if (!coverage) return "not looked at yet";
  const n = coverage.holes.length;
  const messages = coverage.stretches.reduce((sum, stretch) => sum + stretch.messages, 0);
  return `${messages}+ messages${n ? `, ${n} gap${n > 1 ? "s" : ""}` : ""}${coverage.complete ? ", from the beginning" : ""}`;
};

/** How many threads are well, at a glance. */
const tally = (threads) => {
  const state = ({ coverage }) => {
    if (!coverage) return "quiet";
    if (coverage.holes.some((hole) => hole.exhausted)) return "bad";
    return coverage.holes.length ? "warn" : "good";
  };
  const about = { good: "without gaps", warn: "with gaps to be closed", bad: "with gaps the phone cannot fill", quiet: "not looked at yet" };
  const counted = Object.entries(about).map(([tone, text]) => [tone, text, threads.filter((t) => state(t) === tone).length]);
  return el("p", { class: "row" }, ...counted.filter(([, , n]) => n)
    .map(([tone, text, n]) => el("span", { class: `badge ${tone}` }, `${n} thread${n > 1 ? "s" : ""} ${text}`)));
};

const syncView = (data) => draw(`sync ${route.id}`, data, () => {
  const { account } = data;
  const verdict = account.verdict || {};
  const now = Date.parse(data.now) / 1000;
  const ends = data.threads.flatMap((t) => (t.coverage ? t.coverage.stretches.map((s) => s.from) : []));
  const from = Math.min(now - 86400, ...ends);
  const lease = (name, l) => [name, l ? l.instanceId : null, l ? (l.held ? "held" : "free") : null, l ? String(l.epoch ?? "–") : null, l ? time(l.updatedAt) : null];
  return [
    ...tabs(account, "sync"),
    verdict.summary ? el("p", {}, badge(verdict.state), " ", sentence(verdict.summary)) : null,
    tally(data.threads),
    el("section", { class: "panel" }, facts([
      ["Served by", account.owner ? `${account.owner}${account.ownedHere ? " (this instance)" : ""}` : "nobody"],
      ["Next run", timeFrom(account.nextRunAt, data.now)],
      ["Last backfill", timeFrom(account.lastAutoBackfillSuccessAt, data.now)],
      ["Last attempt", timeFrom(account.lastAutoBackfillAttemptAt, data.now)],
      ["Last recent sync", timeFrom(account.lastRecentSyncAt, data.now)],
      ["Last live message", timeFrom(account.lastRealtimeMessageAt, data.now)],
      ["Live error", account.lastRealtimeError || "none"],
    ])),
    el("h2", {}, "History, thread by thread"),
    data.openHoles > data.threads.length
      ? el("p", { class: "quiet" }, `Of all threads, ${data.openHoles} or more have gaps to be closed; the newest ones are shown.`) : null,
    el("p", { class: "legend quiet" }, ...[["known", "without gaps"], ["hole", "gap"], ["lost", "the phone does not have it"],
      ["ground", "not looked at"]].map(([kind, text]) => el("span", {}, el("i", { class: kind }), text))),
    data.threads.length ? el("ul", { class: "coverage panel" }, ...data.threads.map((thread) => el("li", {},
      el("span", { class: "name" }, thread.name || "unnamed"),
      span(thread.coverage || { stretches: [], holes: [] }, from, now, words(thread.coverage)),
      el("span", { class: "quiet" }, words(thread.coverage)))),
      el("li", { class: "quiet" }, el("span", {}),
        el("span", { class: "axis" }, time(new Date(from * 1000).toISOString()), "now"), el("span", {})))
      : el("p", {}, "No threads yet."),
    el("h2", {}, "Runs of this instance"),
    data.runs.length ? table(["Kind", "Why", "Ended", "Result", "Threads", "Messages", "Left", "Took"],
      data.runs.map((run) => [plain(run.kind), run.trigger, time(run.endedAt), run.ok ? "ok" : plain(run.error || "error"),
        String(run.threads), String(run.messages), String(run.remaining), `${(run.durationMs / 1000).toFixed(1)} s`]))
      : el("p", {}, "None since it started."),
    el("h2", {}, "Leases"),
    table(["Lease", "Holder", "State", "Epoch", "Changed"], [
      lease("connection", data.leases.connection),
      lease("backfill", data.leases.autoBackfill),
      lease("recent sync", data.leases.recentSync),
    ]),
  ].filter(Boolean);
});

const message = (m) => el("li", { class: m.direction === "outbound" ? "outbound" : "" },
  m.senderName && m.direction !== "outbound" ? el("p", { class: "quiet" }, m.senderName) : null,
  el("p", {}, m.body || `[${m.messageType || "message"}]`),
  el("p", { class: "quiet" }, time(m.tsClient), m.direction === "outbound" ? ` · ${m.status || ""}` : ""));

const inboxView = (data) => draw(`inbox ${route.id} ${route.thread || ""}`, data, () => [
  ...tabs(data.account, "inbox"),
  el("div", { class: `inbox${route.thread ? " open" : ""}` },
    el("section", { class: "panel threads-pane", "aria-label": "Threads" },
      data.threads.length ? el("ul", { class: "threads", id: "threads", "data-scroll": true }, ...data.threads.map((thread) => el("li", {},
        el("a", {
          id: `thread-${thread.id}`,
          href: `#/account/${encodeURIComponent(route.id)}/inbox/${encodeURIComponent(thread.id)}`,
          "aria-current": thread.id === route.thread ? "true" : null,
        },
        el("div", { class: "top" }, el("span", {}, thread.displayName || thread.phone || "unnamed"),
          el("span", { class: "quiet" }, time(thread.lastMessageAt))),
        el("div", { class: "quiet preview" }, thread.lastMessagePreview || "")))))
        : el("p", {}, "No messages yet.")),
    el("section", { class: "panel", "aria-label": "Messages" },
      route.thread ? el("p", { class: "row" }, el("a", { class: "back", href: `#/account/${encodeURIComponent(route.id)}/inbox` }, "← Threads"),
        el("strong", {}, (data.thread && data.thread.displayName) || "")) : el("p", { class: "quiet" }, "Choose a thread."),
      data.messages ? el("ol", { class: "messages", id: "messages", "data-scroll": true }, ...data.messages.slice().reverse().map(message)) : null)),
]);

// --- Following the address and the time ---

const parse = () => {
  const parts = location.hash.slice(2).split("/").map(decodeURIComponent);
  if (parts[0] === "account" && parts[1]) {
    return { view: parts[2] === "sync" ? "sync" : "inbox", id: parts[1], thread: parts[3] };
  }
  return { view: "accounts" };
};

const header = () => {
  const { instance } = overview;
  const mode = document.getElementById("mode");
  const word = instance.mode + (instance.reason ? `: ${plain(instance.reason)}` : "");
  if (mode.textContent !== word) mode.textContent = word;
  mode.className = `badge ${tones[instance.mode] || "bad"}`;
  const store = document.getElementById("store");
  store.textContent = instance.storeConnected ? "" : "store not reached";
  store.className = "badge bad";
  document.getElementById("instance").textContent = instance.instanceId;
};

const load = async () => {
  const at = route;
  overview = await api("/api/admin/overview");
  if (at !== route) return;
  header();
  if (at.view === "accounts") {
    accountsView();
    return;
  }
  const id = encodeURIComponent(at.id);
  const account = overview.accounts.find((a) => a.id === at.id) || { id: at.id, name: "Account" };
  if (at.view === "sync") {
    const data = await api(`/api/admin/sync/${id}`);
    if (at === route) syncView(data);
    return;
  }
  const threads = await api(`/api/whatsapp/threads/${id}`);
  const open = at.thread ? await api(`/api/whatsapp/messages/${id}/${encodeURIComponent(at.thread)}`) : {};
  if (at === route) {
    const { name, status, masked } = account;
    inboxView({ account: { id: at.id, name, status, masked }, threads: threads.threads, thread: open.thread, messages: open.messages });
  }
};

const refresh = async () => {
  clearTimeout(timer);
  try {
    if (!document.hidden) {
      await load();
      if (document.getElementById("problem").dataset.kind === "away") problem("");
      document.getElementById("problem").dataset.kind = "";
    }
  } catch (error) {
    document.getElementById("problem").dataset.kind = "away";
    problem(error instanceof TypeError ? "The server does not answer." : error.message);
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, 3000);
};

window.addEventListener("hashchange", () => {
  route = parse();
  problem("");
  window.scrollTo(0, 0);
  refresh().then(() => main.focus({ preventScroll: true }));
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const open of main.querySelectorAll("details[open]")) open.open = false;
});
document.getElementById("logout").addEventListener("click", async () => {
  await api("/console/logout", { method: "POST" });
  location.replace("/console/login");
});

(async () => {
  try {
    Object.assign(session, await api("/console/session"));
  } catch (error) {
    problem(error.message);
    return;
  }
  route = parse();
  refresh();
})();
