// The explorer: cluster and latest blocks, renewed each second, and what is searched for.
//
// Relies on this node's HTTP interface alone. Everything from the ledger is put on the page as
// text (`textContent`), never as HTML: user ids and memos are whatever their authors wrote.

const LEDGER = "api/v1/ledger/";
const SHOWN_BLOCKS = 20;
const RENEW_MS = 1000;
const TIMEOUT_MS = 10_000;
const SHORT_HASH = 12;

const byId = (id) => document.getElementById(id);
let sealers = new Map();
let shownBlocks = "";

/** Make an element with attributes and children; a string child becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Keep numbers that JavaScript would round as the digits that were sent. */
function exactNumber(_key, value, context) {
  const isRounded = typeof value === "number" && context && context.source !== String(value);
  return isRounded && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

/** Fetch JSON from this node; a refusal becomes an error with its detail. */
async function read(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const answer = JSON.parse(await response.text(), exactNumber);
  if (!response.ok) throw new Error(answer.detail || answer.title);
  return answer;
}

const link = (hash, text, kind = "") => make("a", { href: hash, class: kind }, text);
const userLink = (user) => link(`#user/${encodeURIComponent(user)}`, user);
const blockLink = (index) => link(`#block/${index}`, index);
const receiptLink = (id) => link(`#receipt/${id}`, id, "mono");
const moment = (text) =>
  make("time", { datetime: text, title: text }, text.replace("T", " ").replace("Z", ""));
const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

function fillRows(body, rows) {
  byId(body).replaceChildren(...rows);
}

function showCluster(cluster) {
  sealers = new Map(cluster.members.map((member) => [member.public_key, member.name]));
  const rows = cluster.members.map((member) => {
    const name = member.name === cluster.node ? `${member.name} (this node)` : member.name;
    return make("tr", {},
      make("th", { scope: "row" }, name),
      make("td", { class: `role-${member.role}` }, member.role),
      make("td", { class: "mono" }, member.http),
      make("td", { class: "mono" }, member.peer),
      make("td", { class: "number" }, member.match_index ?? "–"));
  });
  fillRows("members", rows);
  const facts = [
    ["Cluster", cluster.name], ["Leader", cluster.leader ?? "none"], ["Term", cluster.term],
    ["Committed", cluster.commit_index], ["Applied", cluster.applied_index],
  ];
  if (cluster.catching_up_to != null) facts.push(["Catching up to", cluster.catching_up_to]);
  byId("facts").replaceChildren(...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const alarms = byId("alarms");
  alarms.hidden = cluster.alarms.length === 0;
  alarms.replaceChildren(...cluster.alarms.map((alarm) => make("li", {}, alarm)));
}

function showBlocks(page) {
  const state = JSON.stringify(page.blocks.map((block) => block.hash));
  // The rows stay as they are while nothing is new, so that a focused link keeps its focus.
  if (state === shownBlocks) return;
  shownBlocks = state;
  fillRows("blocks", page.blocks.toReversed().map((block) => make("tr", {},
    make("td", {}, blockLink(block.index)),
    make("td", {}, moment(block.timestamp)),
    make("td", {}, sealers.get(block.sealer) ?? "–"),
    make("td", { class: "number" }, block.term),
    make("td", { class: "number" }, block.transaction_count),
    make("td", { class: "number" }, block.size_bytes),
    make("td", { class: "mono", title: block.hash }, `${block.hash.slice(0, SHORT_HASH)}…`))));
}

async function renew() {
  const state = byId("state");
  try {
    if (!document.hidden) {
      const cluster = await read("api/v1/cluster");
      showCluster(cluster);
      showBlocks(await read(`${LEDGER}blocks?limit=${SHOWN_BLOCKS}`));
      const text = `${cluster.node} of ${cluster.name}`;
      if (state.textContent !== text) state.textContent = text;
      state.className = "";
    }
  } catch (error) {
    state.textContent = `This node does not answer: ${error.message}`;
    state.className = "lost";
  }
  setTimeout(renew, RENEW_MS);
}

function transactionTable(rows) {
  const head = make("tr", {}, ...["Transaction", "User", "Kind", "Payload", "Block"].map((name) =>
    make("th", { scope: "col" }, name)));
  const body = make("tbody", {}, ...rows);
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), body));
}

function transactionRow(transaction, index, position) {
  return make("tr", {},
    make("td", {}, receiptLink(transaction.id)),
    make("td", { class: "text" }, userLink(transaction.user_id)),
    make("td", { class: "text" }, transaction.kind),
    make("td", {}, make("pre", {}, JSON.stringify(transaction.payload, null, 2))),
    make("td", {}, blockLink(index), ` · ${position}`));
}

function fieldList(object, skipped) {
  const names = Object.keys(object).filter((name) => !skipped.includes(name));
  return make("dl", { class: "fields" }, ...names.flatMap((name) =>
    [make("dt", {}, name), make("dd", {}, shown(object[name]))]));
}

async function blockView(index) {
  const block = await read(`${LEDGER}blocks/${encodeURIComponent(index)}`);
  const rows = block.transactions.map((transaction, position) =>
    transactionRow(transaction, block.index, position));
  return [fieldList(block, ["transactions"]), transactionTable(rows)];
}

async function userView(user) {
  const path = `${LEDGER}transactions/${encodeURIComponent(user)}?limit=50`;
  const table = transactionTable([]);
  const more = make("button", { type: "button" }, "Show more");
  let next = null;
  const readOn = async () => {
    const page = await read(next === null ? path : `${path}&after=${next}`);
    table.querySelector("tbody").append(...page.transactions.map((transaction) =>
      transactionRow(transaction, transaction.index, transaction.position)));
    next = page.next;
    more.hidden = next === null;
  };
  more.addEventListener("click", () => readOn().catch(showProblem));
  await readOn();
  const isEmpty = table.querySelector("tbody").childElementCount === 0;
  return isEmpty ? [make("p", {}, "This user has no transactions.")] : [table, more];
}

async function receiptView(id) {
  const answer = await read(`${LEDGER}receipts/${encodeURIComponent(id)}`);
  const parts = [make("p", {}, `Status: ${answer.status}`)];
  if (answer.receipt) {
    parts.push(fieldList(answer.receipt, []));
    parts.push(make("p", {}, "It stands in block ", blockLink(answer.receipt.index), "."));
  }
  return parts;
}

const VIEWS = {
  block: ["Block", blockView],
  user: ["Transactions of", userView],
  receipt: ["Receipt of", receiptView],
};

function showProblem(error) {
  byId("result-body").append(make("p", { class: "problem", role: "alert" }, error.message));
}

/** Show what the part of the address after # asks for. */
async function showAsked() {
  const asked = location.hash;
  const [kind, ...rest] = asked.slice(1).split("/");
  const view = Object.hasOwn(VIEWS, kind) ? VIEWS[kind] : undefined;
  const result = byId("result");
  result.hidden = view === undefined;
  if (view === undefined) return;
  const [title, render] = view;
  let body;
  try {
    const subject = decodeURIComponent(rest.join("/"));
    byId("result-title").textContent = `${title} ${subject}`;
    body = await render(subject);
  } catch (error) {
    body = [make("p", { class: "problem", role: "alert" }, error.message)];
  }
  // An answer that comes after the reader has moved on is of no use.
  if (location.hash !== asked) return;
  byId("result-body").replaceChildren(...body);
  byId("result-title").focus();
}

function searchBy(form, field, kind) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    const value = kind === "receipt" ? byId(field).value.trim() : byId(field).value;
    location.hash = `#${kind}/${encodeURIComponent(value)}`;
  });
}

searchBy("user-form", "user", "user");
searchBy("receipt-form", "receipt", "receipt");
addEventListener("hashchange", showAsked);
showAsked();
renew();
