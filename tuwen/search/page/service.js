// Requests to the service, and the same as commands for curl.

import { said } from "./words.js";

const TRIES = 4;
let key = sessionStorage.getItem("key") ?? "";

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function useKey(text) {
  key = text.trim();
  sessionStorage.setItem("key", key);
}

export const hasKey = () => key !== "";

// The answer, once the service takes the request; `busy` is called when it must be tried again.
export async function ask(path, { busy = () => {}, ...options } = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  for (let left = TRIES; ; left--) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, said("unreachable"));
    }
    if (answer.ok) return answer;
    if (answer.status !== 429 || left === 1) throw new Refused(answer.status, await detail(answer));
    busy();
    await new Promise((resolve) => setTimeout(resolve, 1000 * Number(answer.headers.get("Retry-After") ?? 1)));
  }
}

async function detail(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `${answer.status}`;
  }
}

const json = (value) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });

// A search: { text, picture (a File), like (an id), filters, top }; of none of the three the list of all.
export function request({ text, picture, like, filters, top }) {
  if (!like && !picture && !text) return [`pictures?${new URLSearchParams({ top, filters: JSON.stringify(filters) })}`, {}];
  if (like) return [`similar?${new URLSearchParams({ id: like, top, filters: JSON.stringify(filters) })}`, {}];
  if (!picture) return ["search", json({ text, top, filters })];
  const body = new FormData();
  body.append("picture", picture);
  if (text) body.append("text", text);
  body.append("top", top);
  body.append("filters", JSON.stringify(filters));
  return ["search/image", { method: "POST", body }];
}

export const explain = async (id, text) => (await ask("explain", json({ id, text }))).json();

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl({ text, picture, like, filters, top }) {
  const parts = ["curl -sS"];
  const to = (path) => parts.push(quoted(new URL(path, document.baseURI.split("#")[0]).href));
  if (!like && !picture && !text) {
    parts.push("-G");
    to("pictures");
    parts.push(`-d top=${top}`, `--data-urlencode ${quoted(`filters=${JSON.stringify(filters)}`)}`);
  } else if (like) {
    parts.push("-G");
    to("similar");
    parts.push(`--data-urlencode ${quoted(`id=${like}`)}`, `-d top=${top}`, `--data-urlencode ${quoted(`filters=${JSON.stringify(filters)}`)}`);
  } else if (picture) {
    to("search/image");
    parts.push(`-F ${quoted(`picture=@"${picture.name.replaceAll(/["\\]/g, "\\$&")}"`)}`);
    if (text) parts.push(`--form-string ${quoted(`text=${text}`)}`);
    parts.push(`-F top=${top}`, `--form-string ${quoted(`filters=${JSON.stringify(filters)}`)}`);
  } else {
    to("search");
    parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify({ text, top, filters }))}`);
  }
  if (key) parts.push('-H "Authorization: Bearer $TUWEN_KEY"');
  return parts.join(" ");
}
