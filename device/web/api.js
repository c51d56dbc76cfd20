// The daemon's API: asks, and turns every refusal into the sentence it came with.

const PATIENCE_MS = 60000; // a recording ends when its file is whole

/** What the daemon refused or could not do; the message is one sentence for the user. */
export class Refusal extends Error {}

/** GET a path, or POST a body to it; gives the answer's content, null where there is none. */
export async function ask(path, body) {
  const answer = await send(path, body);
  if (answer.status === 401) location.reload(); // the login form comes instead of the page
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(sentenceOf(content?.detail, answer.status));
  return content;
}

/** POST without content, such as to `api/reset`. */
export const order = (path) => ask(path, null);

async function send(path, body) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  if (body === undefined) return fetch(path, { signal }).catch(unreachable);
  const headers = { "Content-Type": "application/json" };
  return fetch(path, { method: "POST", headers, body: body && JSON.stringify(body), signal }).catch(unreachable);
}

function unreachable(error) {
  if (!["TypeError", "TimeoutError", "AbortError"].includes(error.name)) throw error; // not the network
  throw new Refusal("The microscope does not answer; look whether it is on and try again.");
}

function sentenceOf(detail, status) {
  if (typeof detail === "string") return sentence(detail);
  if (Array.isArray(detail)) return detail.map(({ loc, msg }) => sentence(`${loc.at(-1)}: ${msg}`)).join(" ");
  return `The microscope answered with an error (${status}); its log says why.`;
}

export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1).replace(/\.?$/, ".")}`;
