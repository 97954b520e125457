"use strict";
// Everything of others is put in as text (textContent, value), never as markup.
const $ = (id) => document.getElementById(id);
const given = (name) => document.querySelector(`meta[name="${name}"]`).content;
const TOKEN = given("token"), TARGET = given("target");
const POLL = 5000, AWAY = 300000;

// What must outlive a reload and the server: the name, drafts, and judgements that are not on disk yet.
const SHELF = `feedback:${TARGET}:`;
const memory = {};          // where the browser's storage is full or forbidden
const store = {
  get(key, otherwise) {
    try { return JSON.parse(localStorage.getItem(SHELF + key)) ?? memory[key] ?? otherwise; } catch { return memory[key] ?? otherwise; }
  },
  set(key, value) {
    memory[key] = value;
    try { localStorage.setItem(SHELF + key, JSON.stringify(value)); } catch { /* See memory. */ }
  },
  drop(key) {
    delete memory[key];
    try { localStorage.removeItem(SHELF + key); } catch { /* See memory. */ }
  },
  keys(start) {
    let kept = [];
    try { kept = Object.keys(localStorage).filter((key) => key.startsWith(SHELF)).map((key) => key.slice(SHELF.length)); } catch { /* See memory. */ }
    return [...new Set([...kept, ...Object.keys(memory)])].filter((key) => key.startsWith(start));
  },
};

let person = store.get("person", "");
let sample = null;          // as the server tells it, with said and others
let mode = "";              // "edit" or "critique" while the panel is open
let busy = false;           // between a key and its answer: no key counts
let skipped = new Set();
let active = Date.now();

async function call(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Feedback-Token": TOKEN },
    body: JSON.stringify({ person, ...body }),
    signal: AbortSignal.timeout(15000),
  });
  const told = await response.json().catch(() => ({}));
  if (response.ok) return told;
  throw Object.assign(new Error(told.error || `the server answers ${response.status}`), { status: response.status });
}

function trouble(text) {
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

function why(error) {
  if (error.status === 403) return "The server does not know this page any more: open the address that it printed.";
  if (error.status === 400) return `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  return error.status ? `The server cannot do it: ${error.message}.` : "The server does not answer.";
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Asks until there is an answer; a mistake in what was asked (400) is the caller's.
async function insist(path, body, consequence) {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const told = await call(path, body);
      trouble("");
      return told;
    } catch (error) {
      if (error.status === 400) throw error;
      trouble(`${why(error)} ${consequence}`);
      await pause(wait);
    }
  }
}

// ---- what is shown

function show(told) {
  sample = told.sample;
  mode = "";
  progress(told.progress);
  $("sample").hidden = !sample;
  $("rest").hidden = !!sample;
  if (!sample) return rest(told.progress);
  $("prompt").replaceChildren(...sample.prompt.map((turn) => {
    const part = document.createElement("section"), head = document.createElement("h2"), text = document.createElement("div");
    part.className = "turn";
    head.textContent = sample.prompt.length > 1 ? turn.role : "Prompt";
    text.className = "text";
    text.dir = "auto";
    text.textContent = turn.content;
    part.append(head, text);
    return part;
  }));
  $("completion").textContent = sample.completion;
  $("reference-part").hidden = sample.reference === null;
  $("reference").textContent = sample.reference ?? "";
  $("said").hidden = !sample.said;
  $("said").textContent = sample.said ? `You said: ${inWords(sample.said)}\nThis counts until you say something else.` : "";
  others(sample.others);
  const draft = store.get(`draft:${sample.id}`, null);
  panel(draft ? draft.mode : "");
  scrollTo(0, 0);
}

function inWords(said) {
  const verdict = said.label ? "accepted" : said.correction === null ? "rejected" : "corrected";
  return [verdict, said.correction, said.critique].filter((text) => text !== null).join("\n");
}

function others(names) {
  $("others").hidden = !names.length;
  $("others").textContent = `${names.join(", ")} judged this too. What you say is kept beside it.`;
}

function progress(told) {
  $("progress").textContent = `${told.judged} of ${told.total} judged` + (told.held ? `, ${told.held} before others` : "");
  $("bar").style.width = `${100 * told.judged / Math.max(told.total, 1)}%`;
  $("target").textContent = told.name;
  document.title = `${told.judged}/${told.total} ${told.name}`;
}

function rest(told) {
  const left = told.total - told.judged - told.held;
  $("rest-title").textContent = told.total === told.judged ? "Everything is judged." : "Nothing waits for you now.";
  $("rest-text").textContent = [
    left ? `You skipped ${left}.` : "",
    told.held ? `${told.held} before others; what they leave comes here.` : "",
    "This page goes on by itself when there is more. With u your last judgement comes again.",
  ].filter(Boolean).join(" ");
  $("again").hidden = !left;
  panel("");
}

function panel(wanted) {
  mode = wanted;
  $("panel").hidden = !mode;
  $("keys").hidden = !!mode;
  if (mode) {
    const draft = store.get(`draft:${sample.id}`, null), said = sample.said;
    $("correction").value = draft?.correction ?? said?.correction ?? sample.completion;
    $("critique").value = draft?.critique ?? said?.critique ?? "";
    $("correction-part").hidden = mode !== "edit";
    $("critique-label").textContent = mode === "edit" ? "What was wrong? (may stay empty)" : "What is wrong with it?";
    $("kept").textContent = "";
    const field = $(mode === "edit" ? "correction" : "critique");
    field.focus();
    $("panel").scrollIntoView({ block: "nearest" });
  } else document.activeElement?.blur();
  enable();
}

function enable() {
  for (const button of document.querySelectorAll("footer button, #panel button")) {
    const key = button.dataset.key;
    button.disabled = busy || (key !== undefined && (mode !== "" || (!sample && key !== "u")));
  }
}

// ---- what is done

async function alone(work) {
  if (busy) return;
  busy = true;
  enable();
  try { await work(); } catch (error) { trouble(why(error)); } finally { busy = false; enable(); }
}

async function next() {
  show(await insist("next", { skipped: [...skipped] }, "It is asked again."));
}

// A judgement is in the browser's own memory until the server has it on disk, so neither can lose it.
async function flush() {
  for (const key of store.keys("unsaved:")) {
    const entry = store.get(key, null);
    try {
      await insist("judge", entry, "Your judgement cannot be saved yet: it is kept in this browser, and sent again.");
      store.drop(`draft:${entry.sample}`);
    } finally { store.drop(key); }
  }
}

function judge(verdict) {
  const edited = verdict === "edit", words = edited || verdict === "critique";
  const correction = edited ? $("correction").value : "", critique = words ? $("critique").value : "";
  return alone(async () => {
    store.set(`unsaved:${sample.id}:${person}`, { person, sample: sample.id, verdict, correction, critique });
    await flush();
    await next();
  });
}

// What was typed is there again with the next e or c.
function leavePanel() {
  const draft = store.get(`draft:${sample.id}`, null);
  if (draft) store.set(`draft:${sample.id}`, { ...draft, mode: "" });
  panel("");
}

const actions = {
  a: () => judge("accept"),
  r: () => judge("reject"),
  e: () => panel("edit"),
  c: () => panel("critique"),
  s: () => alone(async () => { if (!sample.said) skipped.add(sample.id); await next(); }),
  u: () => alone(async () => {
    const told = await insist("undo", { sample: sample?.id ?? null }, "It is asked again.");
    if (told.sample) show(told); else trouble("You have judged nothing before this.");
  }),
};

function press(key) {
  // An open panel holds words: it is saved or left first.
  if (busy || !person || mode || (!sample && key !== "u")) return;
  trouble("");
  actions[key]();
}

document.addEventListener("keydown", (event) => {
  active = Date.now();
  if (event.key === "Escape" && mode) leavePanel();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && mode) {
    event.preventDefault();
    judge(mode);
  }
  const typing = event.target.matches("textarea, input");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
  event.preventDefault();
  press(event.key);
});
document.addEventListener("pointerdown", () => { active = Date.now(); });
for (const button of document.querySelectorAll("footer button")) {
  button.addEventListener("click", () => press(button.dataset.key));
}
$("panel").addEventListener("submit", (event) => { event.preventDefault(); judge(mode); });
$("panel").addEventListener("input", () => {
  store.set(`draft:${sample.id}`, { mode, correction: $("correction").value, critique: $("critique").value });
  $("kept").textContent = "Draft kept in this browser.";
});
$("cancel").addEventListener("click", leavePanel);
$("again").addEventListener("click", () => alone(async () => { skipped = new Set(); await next(); }));

// ---- who

function begin() {
  $("welcome").hidden = !!person;
  $("head").hidden = !person;
  $("person").textContent = person;
  if (person) return alone(async () => { await flush(); await next(); });
  for (const id of ["sample", "rest", "keys"]) $(id).hidden = true;
  $("name").value = store.get("person", "") || given("person");
  $("name").focus();
}

$("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(async () => {
    person = (await insist("name", { person: $("name").value }, "It is asked again.")).person;
    store.set("person", person);
  }).then(() => { if (person) begin(); });
});
$("person").addEventListener("click", () => { if (!busy) { person = ""; sample = null; begin(); } });

// ---- what others do meanwhile

setInterval(async () => {
  if (busy || !person || document.hidden) return;
  if (!sample) return alone(next);
  try {
    const asked = sample.id;
    const told = await call("status", { sample: asked, active: Date.now() - active < AWAY });
    if (busy || sample?.id !== asked) return;
    progress(told.progress);
    others(told.others);
    if ($("trouble").textContent.startsWith("The server")) trouble("");
  } catch (error) { if (!busy) trouble(`${why(error)} What you write is kept in this browser.`); }
}, POLL);

// The token in the address has done its work: a cookie has it now.
history.replaceState(null, "", location.pathname);
begin();
