// Drives the status page in Chromium as an operator does. `node drive.mjs SCENE`, told by the environment where the mirror
// is; ends with 0 when everything was as it should be.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { ADMIN, MIRROR, SHOTS, TOKEN, PLAYWRIGHT } = process.env;
const { chromium } = createRequire(join(PLAYWRIGHT, "here.js"))("playwright-core");

const profile = await mkdtemp(join(tmpdir(), "page-"));
const quiet = ["--no-first-run", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium", chromiumSandbox: false, args: quiet, viewport: { width: 1280, height: 900 },
});
const faults = [];
/** Answers that a scene means to get; the browser calls them errors. */
const meant = [];

async function open(options = {}) {
  const page = await browser.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && !meant.some((it) => message.text().includes(it))) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(`${error}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(ADMIN)) faults.push(`asked elsewhere: ${request.url()}`);
  });
  await page.emulateMedia(options);
  await page.goto(`${ADMIN}/`);
  await page.locator("#link[data-state=live]").waitFor();
  return page;
}

async function until(page, selector, text) {
  await page.locator(selector).filter({ hasText: text }).first().waitFor();
}

async function shot(page, name) {
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}

/** As a client does: the manifest, then what it names. */
async function pull(repository, tag) {
  const at = `${MIRROR}/v2/${repository}`;
  const manifest = await fetch(`${at}/manifests/${tag}`);
  if (!manifest.ok) return manifest.status;
  const { config, layers } = await manifest.json();
  for (const { digest } of [config, ...layers]) await (await fetch(`${at}/blobs/${digest}`)).arrayBuffer();
  return 200;
}

const scenes = {
  async empty() {
    const page = await open({ colorScheme: "light" });
    await until(page, "#count", "None yet");
    await until(page, "#outcomes", "Nothing was asked for");
    assert.ok(await page.locator("#warm-section, #missing-section").evaluateAll((all) => all.every((it) => it.hidden)));
    await page.locator("#chart-requests canvas").waitFor();
    await shot(page, "empty");
    const dark = await open({ colorScheme: "dark" });
    await until(dark, "#count", "None yet");
    assert.equal(await dark.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(14, 23, 27)");
    await dark.setViewportSize({ width: 390, height: 844 });
    assert.ok(await dark.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it is as wide as a phone");
    await shot(dark, "empty-dark-phone");
  },

  // Two images are here already, and one comes slowly.
  async busy() {
    const page = await open();
    await until(page, "#count", "2 images");
    const before = await page.locator("#sent").textContent();
    assert.equal(await pull("library/app", "v1"), 200);
    await page.waitForFunction((was) => document.getElementById("sent").textContent !== was, before);
    await until(page, "#popular", "docker.io/library/app:v1");
    const slow = pull("library/slow", "v1");
    await page.locator("#fetches progress").first().waitFor();
    await until(page, "#fetches", "docker.io/library/slow");
    await page.locator("#eviction summary").click();
    await until(page, "#next", "docker.io/library/app");
    await shot(page, "busy");
    await page.emulateMedia({ colorScheme: "dark" });
    await shot(page, "busy-dark");
    await slow;
    await until(page, "#fetches", "Nothing.");
    await until(page, "#count", "3 images"); // by itself
  },

  // It is offline now, after a round in which something could not be had.
  async kept() {
    assert.equal(await pull("library/else", "v9"), 404);
    const page = await open();
    await until(page, "#warm", "nightly: 2 images here");
    await until(page, "#warm .fine", "docker.io/library/app:v2 is sha256:");
    await until(page, "#warm .bad", "docker.io/library/gone:v1");
    await until(page, "#missing", "1 × docker.io/library/else:v9");
    await shot(page, "kept");
  },

  async throttled() {
    assert.equal(await pull("library/app", "v1"), 429);
    const page = await open();
    await until(page, "#upstreams", "0 of 100 pulls left");
    await page.locator("#upstreams meter").first().waitFor();
    await until(page, "#troubles", "429");
    await until(page, "#troubles", "/v2/library/app/manifests/v1");
    await shot(page, "throttled");
  },

  // Without a mouse. The mirror wants a token for what changes something.
  async keyboard() {
    const page = await open();
    meant.push("401 (Unauthorized)", "409 (Conflict)");
    await until(page, "#count", "2 images");
    await page.locator("#filter").focus();
    await page.keyboard.type("app v2");
    await until(page, "#count", "1 of 2 images");
    await page.locator("#rows button.name").focus();
    await page.keyboard.press("Enter");
    const dialog = page.locator("#image[open]");
    await dialog.waitFor();
    await until(page, "#image-words", "Here: all");
    await until(page, "#parts", "linux/amd64");
    await page.locator("#explain").press("Enter");
    await until(page, "#image-said", "A pull checks the tag");
    await shot(page, "image");

    // None, then a wrong one, then the right one.
    await page.locator("#pin").press("Enter");
    await page.locator("#token-dialog[open]").waitFor();
    await page.keyboard.press("Escape");
    await until(page, "#image-said", "needs the token");
    await page.locator("#pin").press("Enter");
    for (const token of ["not-the-right-token", TOKEN]) {
      await page.locator("#token-dialog[open]").waitFor();
      await page.locator("#token").fill(token);
      await page.keyboard.press("Enter");
    }
    await until(page, "#image-said", "not evicted any more");
    await until(page, "#pin", "Unpin");
    await page.locator("#refresh").press("Enter");
    await until(page, "#image-said", "Still sha256:");
    await page.locator("#remove").press("Enter");
    await until(page, "#remove", "Really remove");
    await page.keyboard.press("Enter");
    await until(page, "#image-said", "it is pinned; unpin it first");
    await page.locator("#pin").press("Enter");
    await until(page, "#image-said", "may be evicted");
    await page.locator("#remove").press("Enter");
    await page.keyboard.press("Enter");
    await until(page, "#count", "is removed");
    await page.locator("#filter").fill("");
    await until(page, "#count", "1 image");
    assert.equal(await page.locator("#image[open]").count(), 0);
  },

  async many() {
    const page = await open();
    await page.locator("#count").filter({ hasText: /^10000 images$/ }).waitFor({ timeout: 60_000 });
    const spans = await page.evaluate(async () => {
      const filter = document.getElementById("filter");
      const spans = [];
      for (const text of ["7", "77", "777", "v7", "v9999", "none such", ""]) {
        // The least of five: a busy machine may be at something else in one of them, and what is slow is so in each.
        let least = Infinity;
        for (let time = 0; time < 5; time++) {
          filter.value = time % 2 ? "" : text;
          const begun = performance.now();
          filter.value = text;
          filter.dispatchEvent(new Event("input"));
          document.body.getBoundingClientRect(); // laid out too
          least = Math.min(least, performance.now() - begun);
          await new Promise(requestAnimationFrame);
        }
        spans.push(least);
      }
      return spans;
    });
    console.log(`10,000 images, filtered in ${spans.map((span) => span.toFixed(1)).join(", ")} ms`);
    assert.ok(Math.max(...spans) < 100, `${spans}`);
    await page.locator("#filter").fill("v9999");
    await until(page, "#count", "1 of 10000 images");
    await page.locator("#filter").fill("");
    await page.locator("#after").click();
    await until(page, "#page", "Page 2 of 100");
    await page.locator("[data-sort=bytes]").click();
    await until(page, "#page", "Page 1 of 100");
  },

  async gone() {
    const page = await open();
    meant.push("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET");
    console.log("open"); // and the mirror is stopped
    await page.locator("#link[data-state=lost]").waitFor({ timeout: 60_000 });
  },
};

try {
  await scenes[process.argv[2]]();
  assert.deepEqual(faults, []);
} catch (error) {
  const [, page] = browser.pages();
  if (page) await shot(page, `failed-${process.argv[2]}`).catch(() => {});
  console.error(faults.join("\n"));
  throw error;
} finally {
  await browser.close();
  await rm(profile, { recursive: true, force: true });
}
