// Asks the mirror. What changes something may need the operator's token: it is asked for once, and forgotten with the page.

import { byId, say } from "./words.js";

let token = null;

class Refusal extends Error {
  constructor(status, { code, message }) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function read(answer) {
  const body = await answer.json().catch(() => null);
  if (answer.ok) return body;
  throw new Refusal(answer.status, body?.error ?? { code: "unknown", message: `The mirror answered with ${answer.status}.` });
}

export async function get(path) {
  return read(await fetch(path));
}

/** Has the mirror do something with an image, and asks for the token where it wants one. */
export async function act(verb, image) {
  const path = `/api/v1/${verb}?image=${encodeURIComponent(image)}`;
  for (;;) {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    try {
      return await read(await fetch(path, { method: "POST", headers }));
    } catch (error) {
      if (error.status !== 401) throw error;
      token = await askForToken(error.message);
      if (!token) throw error;
    }
  }
}

function askForToken(why) {
  const dialog = byId("token-dialog");
  say("token-why", why);
  byId("token").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "go" ? byId("token").value.trim() : null);
      byId("token").value = "";
    }, { once: true });
  });
}
