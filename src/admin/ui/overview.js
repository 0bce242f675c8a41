// Everything above the images, from one status.

import { ago, byId, make, say, short, size, time } from "./words.js";

/** Of a list that may be long; the commands print all of it. */
const MOST_LINES = 10;
const OUTCOMES = ["hit", "stale", "revalidated", "joined", "miss", "negative", "denied", "error"];

export function show(status) {
  const { traffic, cache } = status;
  const offline = status.offline ? ", offline: no registry is contacted" : "";
  say("state", `${status.version}, ${status.phase}${offline}, up ${time(status.uptime_seconds)}`);
  say("hit-ratio", traffic.hit_ratio === null ? "–" : `${(traffic.hit_ratio * 100).toFixed(1)} %`);
  say("saved", size(traffic.saved_bytes));
  say("sent", size(traffic.sent_bytes));
  say("fetched", size(traffic.fetched_bytes));
  const pinned = cache.pinned ? `, ${size(cache.pinned)} pinned` : "";
  say("fill-words", `${size(cache.bytes)} of ${size(cache.limit)}, ${cache.blobs} blobs and manifests${pinned}`);
  byId("fill").value = cache.limit ? cache.bytes / cache.limit : 0;
  const counts = OUTCOMES.filter((outcome) => traffic.requests[outcome]).map((outcome) => `${traffic.requests[outcome]} ${outcome}`);
  say("outcomes", counts.length ? `Requests since the start: ${counts.join(", ")}` : "Nothing was asked for since the start.");
  const notice = byId("notice");
  notice.hidden = !cache.failing.length;
  say("notice", cache.failing.length ? `Nothing can be kept at the moment (${cache.failing.join(", ")}): pulls go on uncached.` : "");
  byId("upstreams").replaceChildren(...status.upstreams.map(upstream));
  list("fetches", status.fetches, fetching, "Nothing.");
  list("troubles", status.troubles, trouble, "Nothing.");
  list("popular", status.popular, popular, "Nothing was asked for yet.");
}

export function showNext(eviction) {
  const victim = (it) => make("li", {}, make("span", { class: "digest" }, short(it.digest)),
    ` ${size(it.size)}, used ${ago(it.last_use)}, of ${it.repositories.join(", ") || "no repository"}`);
  list("next", eviction.next, victim, "Nothing: the cache is empty, or all of it is pinned.");
}

/** Of each [[warm]]; nothing where there is none. */
export function showWarm({ warm }) {
  byId("warm-section").hidden = !warm.length;
  list("warm", warm, kept, "");
}

export function showMissing({ images }) {
  byId("missing-section").hidden = !images.length;
  const missed = (it) => make("li", {}, `${it.times} × ${it.image}, last ${ago(it.last)}`);
  list("missing", images.slice(0, MOST_LINES), missed, "");
  byId("missing").append(...more(images.length));
}

function list(id, items, each, none) {
  byId(id).replaceChildren(...(items.length ? items.map(each) : [make("li", { class: "fine" }, none)]));
}

function upstream(it) {
  const card = make("article", { class: "card" }, make("h3", {}, it.registry));
  it.accounts.forEach((account) => card.append(...gauge(account)));
  it.down.forEach((down) => {
    const about = down.repository ? ` about ${down.repository}` : "";
    card.append(make("p", { class: "bad" }, `${down.endpoint} does not answer${about}, since ${time(down.since_seconds)}: ${down.reason}`));
  });
  it.paused.forEach((pause) => {
    card.append(make("p", { class: "warn" }, `${pause.endpoint} is left alone for another ${time(pause.seconds)}: it has had too many requests`));
  });
  const waiting = it.waiting.foreground + it.waiting.revalidation + it.waiting.background;
  card.append(make("p", {}, `${it.connections} of ${it.max_connections} connections in use, ${waiting || "nobody"} waiting`));
  return card;
}

function gauge(account) {
  const name = `${account.account} at ${account.endpoint}`;
  if (account.standing === "aside") return [make("p", { class: "bad" }, `${name} is set aside: ${account.fault ?? "its login was refused"}`)];
  if (account.limit === null || account.remaining === null) {
    const known = { unlimited: "no limit", spent: "spent", unknown: "nothing known of a limit yet" };
    return [make("p", { class: account.standing === "spent" ? "bad" : null }, `${name}: ${known[account.standing] ?? account.standing}`)];
  }
  const { limit, remaining } = account;
  const forecast = remaining === 0
    ? (account.recovery_seconds === null ? "spent" : `the next in ${time(account.recovery_seconds)}`)
    : account.exhaustion_seconds === null ? "lasts at this pace" : `spent in ${time(account.exhaustion_seconds)} at this pace`;
  const meter = make("meter", { min: 0, max: limit, low: limit / 4, high: limit / 2, optimum: limit, value: remaining, "aria-label": name });
  return [make("p", { class: remaining === 0 ? "bad" : null }, `${name}: ${remaining} of ${limit} pulls left, ${forecast}`), meter];
}

function kept({ name, next, image, waits, last }) {
  const due = next - Date.now() / 1000;
  const now = image ? `now at ${image}${waits ? `, which waits: ${waits}` : ""}` : due > 0 ? `the next round in ${time(due)}` : "a round is due";
  if (!last) return make("li", {}, `${name}: no round has ended yet; ${now}`);
  const item = make("li", {}, `${name}: ${last.images} images here ${ago(last.ended)}, for which ${size(last.fetched)} came; ${now}`);
  for (const { image, message } of last.failed.slice(0, MOST_LINES)) item.append(make("p", { class: "bad" }, `${image}: ${message}`));
  for (const { image, before, digest } of last.changed.slice(0, MOST_LINES)) {
    item.append(make("p", { class: "fine" }, `${image} is `, make("span", { class: "digest" }, short(digest)), before ? `, was ${short(before)}` : ", new"));
  }
  item.append(...more(Math.max(last.failed.length, last.changed.length), "p"));
  return item;
}

function more(count, name = "li") {
  return count > MOST_LINES ? [make(name, { class: "fine" }, `… and ${count - MOST_LINES} more`)] : [];
}

function fetching(it) {
  const words = it.total === null ? size(it.received) : `${size(it.received)} of ${size(it.total)}`;
  const bar = make("progress", { max: it.total ?? null, value: it.total === null ? null : it.received, "aria-label": it.digest });
  return make("li", {}, `${it.repository} `, make("span", { class: "digest" }, short(it.digest)), ` ${words}, for ${time(it.seconds)}`, bar);
}

function trouble(it) {
  const times = it.times > 1 ? `, ${it.times} times` : "";
  const whom = it.client ? ` to ${it.client}` : "";
  return make("li", {}, make("span", { class: it.status >= 500 ? "bad" : "warn" }, `${it.status} ${it.reason}`),
    ` ${ago(it.at)}${whom}${times}: `, make("code", {}, it.what), make("p", { class: "fine" }, it.message));
}

function popular(it) {
  return make("li", {}, `${it.pulls} × ${it.image}`);
}
