// What is remembered: filtered, sorted, a page at a time, and each image with what may be done about it.

import { act, get } from "./api.js";
import { ago, byId, here, make, say, short, size, time } from "./words.js";

const ROWS = 100;
const FEW = 2000;
const ANEW = 5000;
const VALUES = {
  image: (it) => it.image,
  bytes: (it) => it.content.bytes,
  confirmed: (it) => it.age_seconds,
  used: (it) => -(it.last_use ?? 0),
};

let all = [];
let found = [];
let page = 0;
let sorted = { by: "image", up: true };
let opened = null;
let loading = 0;
let loaded = 0;
let loadedWith = null;

export function start() {
  byId("filter").addEventListener("input", () => find());
  byId("reload").addEventListener("click", load);
  byId("before").addEventListener("click", () => turn(page - 1));
  byId("after").addEventListener("click", () => turn(page + 1));
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const by = button.dataset.sort;
      sorted = { by, up: sorted.by === by ? !sorted.up : true };
      document.querySelectorAll("th[aria-sort]").forEach((it) => it.removeAttribute("aria-sort"));
      button.parentElement.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
      find();
    });
  }
  byId("pin").addEventListener("click", () => change(opened.pinned ? "unpin" : "pin", (done) => (done.pinned ? "It is not evicted any more." : "It may be evicted when its turn comes.")));
  byId("refresh").addEventListener("click", () => change("refresh", (done) => (done.before === done.digest ? `Still ${done.digest}.` : `It means ${done.digest} now.`)));
  byId("remove").addEventListener("click", remove);
  byId("explain").addEventListener("click", explain);
  load();
}

/** Page by page; what has come is shown meanwhile. */
export async function load() {
  const own = ++loading;
  loaded = Date.now();
  const list = [];
  let after = "";
  try {
    do {
      const next = await get(`/api/v1/images?limit=1000${after}`);
      if (own !== loading) return;
      list.push(...next.images);
      after = next.next && `&after=${encodeURIComponent(next.next)}`;
      all = list.map((image) => ({ ...image, text: image.image.toLowerCase() }));
      find(true);
    } while (after);
  } catch (error) {
    say("count", `The images cannot be loaded: ${error.message}`);
  }
}

function find(keepPage = false) {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = all.filter((it) => words.every((word) => it.text.includes(word)));
  const value = VALUES[sorted.by];
  const sign = sorted.up ? 1 : -1;
  // They come in the order of their names.
  if (sorted.by !== "image" || !sorted.up) {
    found.sort((one, other) => (value(one) < value(other) ? -sign : value(one) > value(other) ? sign : 0));
  }
  turn(keepPage ? page : 0);
}

function turn(to) {
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  page = Math.min(Math.max(0, to), pages - 1);
  byId("rows").replaceChildren(...found.slice(page * ROWS, (page + 1) * ROWS).map(row));
  say("count", all.length === 0 ? "None yet: what is pulled through this mirror shows up here."
    : found.length === all.length ? images(all.length) : `${found.length} of ${images(all.length)}`);
  say("page", `Page ${page + 1} of ${pages}`);
  byId("before").disabled = page === 0;
  byId("after").disabled = page === pages - 1;
}

function images(count) {
  return count === 1 ? "1 image" : `${count} images`;
}

/** More or less is kept than before. A short list is loaded anew, a long one when somebody asks for it. */
export function changed(blobs) {
  loadedWith ??= blobs;
  const isOld = Date.now() - loaded > ANEW;
  if (blobs === loadedWith || !isOld || all.length > FEW || document.hidden) return;
  loadedWith = blobs;
  load();
}

function row(it) {
  const name = make("button", { type: "button", class: "name" }, it.image);
  name.addEventListener("click", () => open(it.image));
  return make("tr", { "data-image": it.image },
    make("td", {}, name, it.pinned ? " · pinned" : ""),
    make("td", { class: "digest wide-only" }, short(it.digest)),
    make("td", { class: "wide-only" }, it.content.platforms.join(", ")),
    make("td", { class: "number" }, size(it.content.bytes)),
    make("td", { class: "number" }, it.held ? "held" : `${time(it.age_seconds)} ago`),
    make("td", { class: "number" }, ago(it.last_use)),
    make("td", {}, here(it.content)));
}

async function open(image) {
  say("image-name", image);
  say("image-words", "");
  say("image-said", "");
  byId("parts").tBodies[0].replaceChildren();
  opened = { image, pinned: false };
  confirming(false);
  byId("image").showModal();
  await look(image);
}

async function look(image) {
  try {
    const shown = await get(`/api/v1/image?image=${encodeURIComponent(image)}`);
    if (opened?.image !== image) return;
    opened = shown;
    const since = shown.since === null ? "" : `, since ${new Date(shown.since * 1000).toLocaleString()}`;
    const confirmed = shown.age_seconds === null ? "" : `, confirmed ${time(shown.age_seconds)} ago`;
    say("image-words", `${shown.digest}${shown.held ? ", held" : ""}${since}${confirmed}. Here: ${here(shown.content)}, ${size(shown.content.bytes)}${shown.pinned ? ", pinned" : ""}.`);
    byId("parts").tBodies[0].replaceChildren(...shown.manifests.map((it) => part(it, it.platform ?? "manifest")), ...shown.blobs.map((it) => part(it, it.media_type)));
  } catch (error) {
    say("image-said", error.message);
  }
  say("pin", opened.pinned ? "Unpin" : "Pin");
}

function part(it, what) {
  const state = it.pinned ? "pinned" : it.cached ? "here" : "not here";
  return make("tr", {}, make("td", { class: "digest" }, short(it.digest)), make("td", {}, what),
    make("td", { class: "number" }, size(it.size)), make("td", {}, state), make("td", { class: "number" }, ago(it.last_use)));
}

async function change(verb, words) {
  const { image } = opened;
  confirming(false);
  say("image-said", "…");
  try {
    const done = await act(verb, image);
    await look(image);
    say("image-said", words(done));
    load();
    return true;
  } catch (error) {
    say("image-said", error.message);
    return false;
  }
}

/** At the second press. */
async function remove() {
  if (byId("remove").dataset.sure !== "yes") {
    confirming(true);
    return;
  }
  const { image } = opened;
  confirming(false);
  try {
    const { bytes } = await act("remove", image);
    byId("image").close();
    await load();
    say("count", `${image} is removed, and ${size(bytes)} with it.`);
  } catch (error) {
    say("image-said", error.message);
  }
}

function confirming(isAsked) {
  byId("remove").dataset.sure = isAsked ? "yes" : "no";
  say("remove", isAsked ? "Really remove" : "Remove");
}

const PROSPECTS = {
  hit: "A pull is served from the cache without asking anybody.",
  hit_then_check: "A pull is served from the cache at once; the tag is checked afterwards by a free HEAD.",
  check: "A pull checks the tag by a free HEAD, then is served from the cache unless it has moved.",
  stale: "A pull is served from the cache although the tag cannot be checked now.",
  miss: "A pull fetches it from the upstream.",
  held: "A pull waits for schedule.max_wait, then is told to come again.",
  down: "A pull is told at once that nobody answers there.",
  negative: "A pull is told that there is no such image: the upstream said so a moment ago.",
  offline: "A pull is told that it is not here: this mirror is offline.",
};

async function explain() {
  try {
    const it = await get(`/api/v1/explain?image=${encodeURIComponent(opened.image)}`);
    const who = it.payer ? `${it.payer.account} at ${it.payer.endpoint} ${it.payer.metered ? "would pay for what is not here" : "would be asked, which counts no pulls"}.` : (it.refused ?? "");
    const trouble = it.trouble ? `The last check failed: ${it.trouble}` : "";
    say("image-said", [PROSPECTS[it.prospect] ?? it.prospect, who, trouble].filter(Boolean).join("\n"));
  } catch (error) {
    say("image-said", error.message);
  }
}
