// Numbers as one says them, and elements made of texts: nothing from outside is ever read as markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit ? bytes.toFixed(1) : Math.round(bytes)} ${UNITS[unit]}`;
}

export function time(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

export function ago(moment) {
  return moment === null ? "–" : `${time(Date.now() / 1000 - moment)} ago`;
}

export function short(digest) {
  return digest.slice(0, 19);
}

/** How much of an image is here. */
export function here(content) {
  if (!content.manifest_cached) return "the name alone";
  const part = (cached, all, what) => (cached < all ? [`${cached} of ${all} ${what}`] : []);
  const parts = [
    ...part(content.manifests_cached, content.manifests, "platforms"),
    ...part(content.blobs_cached, content.blobs, "blobs"),
  ];
  return parts.length ? parts.join(", ") : "all";
}

/** An element with attributes and children; a child that is no element is a text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

export function say(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}
