// The status page: one stream of news, and what is asked for when somebody looks.

import { get } from "./api.js";
import * as charts from "./charts.js";
import * as images from "./images.js";
import { show, showMissing, showNext, showWarm } from "./overview.js";
import { byId, say } from "./words.js";

/** Where too many watch already, it is asked now and then. */
const POLL = 5000;
const CHARTS = 10_000;

function link(state, words) {
  byId("link").dataset.state = state;
  say("link", words);
}

function watch() {
  const events = new EventSource("/api/v1/events");
  events.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    show(status);
    images.changed(status.cache.blobs);
    link("live", "live");
  });
  events.addEventListener("error", () => {
    link("lost", "the mirror does not answer; trying again…");
    if (events.readyState === EventSource.CLOSED) poll();
  });
}

async function poll() {
  try {
    show(await get("/api/v1/status"));
    link("waiting", "every 5 seconds");
  } catch {
    link("lost", "the mirror does not answer; trying again…");
  }
  setTimeout(poll, POLL);
}

byId("eviction").addEventListener("toggle", async () => {
  if (byId("eviction").open) showNext(await get("/api/v1/eviction").catch(() => ({ next: [] })));
});
/** What changes by the hour; where the mirror does not answer, the page says so elsewhere. */
async function look() {
  await Promise.all([get("/api/v1/warm").then(showWarm), get("/api/v1/missing").then(showMissing)]).catch(() => {});
}

charts.start();
images.start();
watch();
look();
setInterval(() => {
  if (document.hidden) return;
  charts.update();
  look();
}, CHARTS);
