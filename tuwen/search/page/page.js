// The page: what is looked for, in the box and in the address, and what was found.

import { card } from "./card.js";
import { showChoice, shownOf } from "./columns.js";
import { showFilters } from "./filters.js";
import { Refused, ask, curl, hasKey, request, useKey } from "./service.js";
import { said, speak, spoken, turn } from "./words.js";

const STEP = 20;
const MOST = 200;
const part = (id) => document.getElementById(id);

const wanted = { text: "", picture: null, like: "", filters: {}, top: STEP };
let about = null; // what the service says of its index
let found = null;
let search = null; // to call off a search that a newer one overtakes

function say(text, bad = false) {
  part("status").textContent = text;
  part("status").classList.toggle("bad", bad);
}

async function look() {
  search?.abort();
  search = new AbortController();
  const { signal } = search;
  say(said("searching"));
  part("results").classList.add("waiting");
  try {
    const [path, options] = request(wanted);
    const answer = await ask(path, { ...options, signal, busy: () => say(said("busy")) });
    found = await answer.json();
    if (!signal.aborted) showResults();
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  } finally {
    if (!signal.aborted) part("results").classList.remove("waiting");
  }
}

function failed(error) {
  if (!(error instanceof Refused)) throw error;
  const locked = error.status === 401;
  part("key").hidden = !locked;
  say(locked && !hasKey() ? said("locked") : error.message, true);
  if (locked) part("key-text").focus();
}

function clearResults() {
  found = null;
  part("results").replaceChildren();
  part("more").hidden = part("command").hidden = part("columns").hidden = true;
  say(about ? said("ready", about.pictures) + said("stages", about.second_stage) : "");
}

function showResults() {
  const similar = (id) => go({ like: id });
  const text = wanted.like ? "" : wanted.text;
  const names = [...new Set(found.results.flatMap(({ columns }) => Object.keys(columns)))];
  const cards = found.results.map((result, k) => card(result, k + 1, text, similar, k < found.reranked, shownOf(names)));
  part("results").replaceChildren(...cards);
  showChoice(part("columns"), names, showResults);
  part("more").hidden = found.results.length < wanted.top || wanted.top >= MOST;
  part("command").hidden = false;
  part("curl").textContent = curl(wanted);
  sayFound();
}

function sayFound() {
  const count = found.results.length;
  const listed = !wanted.text && !wanted.picture && !wanted.like;
  const collection = () => said("ready", about.pictures) + said("stages", about.second_stage);
  const some = () => (listed && about ? collection() : said("found", count, Math.round(found.ms)));
  const pieces = [count ? some() : said("none") + why()];
  if (wanted.like) pieces.unshift(said("like"));
  if (!found.complete) pieces.push(said("incomplete"));
  if (found.unknown.length) pieces.push(said("unknown", found.unknown.slice(0, 8).join(", ")));
  say(pieces.join(" · "));
}

// Why nothing was found: an empty index, or filters that no picture passes.
function why() {
  if (about && !about.pictures) return said("empty");
  const names = Object.keys(wanted.filters);
  return names.length ? said("narrow", names.join(", ")) : "";
}

// Looks for something new. It stands in the address behind #, which browsers send to nobody; a picture cannot.
function go({ text = "", picture = null, like = "" }) {
  Object.assign(wanted, { text: text.trim(), picture, like, top: STEP });
  showWanted();
  const address = like ? `#like=${encodeURIComponent(like)}` : text.trim() ? `#q=${encodeURIComponent(text.trim())}` : "#";
  if (location.hash !== address) history.pushState(null, "", address);
  return look();
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  Object.assign(wanted, { text: asked.get("q") ?? "", picture: null, like: asked.get("like") ?? "", top: STEP });
  showWanted();
  return look();
}

function showWanted() {
  part("text").value = wanted.text;
  part("chosen").hidden = !wanted.picture;
  const image = part("chosen-picture");
  if (image.src) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  if (wanted.picture) image.src = URL.createObjectURL(wanted.picture);
}

function choose(files) {
  const picture = [...files].find((file) => file.type.startsWith("image/"));
  if (picture) return go({ text: part("text").value, picture });
  if (files.length) say(said("noPicture"), true);
}

function showFiltersOfIndex() {
  if (!about) return;
  showFilters(part("filters"), about.columns, wanted.filters, () => {
    wanted.top = STEP;
    look();
  });
}

function showLanguage() {
  document.documentElement.lang = spoken() === "zh" ? "zh-CN" : "en";
  part("language").textContent = said("other");
  speak(document);
  showFiltersOfIndex();
  if (found) showResults();
  else clearResults();
}

async function begin() {
  showLanguage();
  try {
    about = await (await ask("index")).json();
    part("key").hidden = true;
    showFiltersOfIndex();
    await fromAddress();
  } catch (error) {
    failed(error);
  }
}

// Arrow keys go from picture to picture, up and down by rows.
function move(event) {
  const pictures = [...document.querySelectorAll(".picture")];
  const at = pictures.indexOf(document.activeElement);
  if (at < 0) return;
  const columns = getComputedStyle(part("results")).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step || !pictures[at + step]) return;
  event.preventDefault();
  pictures[at + step].focus();
}

part("search").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ text: part("text").value, picture: wanted.picture });
});
part("file").addEventListener("change", () => { choose(part("file").files); part("file").value = ""; });
part("forget").addEventListener("click", () => { part("text").focus(); go({ text: part("text").value }); });
part("more").addEventListener("click", () => { wanted.top = Math.min(MOST, wanted.top + STEP); look(); });
part("language").addEventListener("click", () => { turn(); showLanguage(); });
part("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(part("key-text").value);
  part("key-text").value = "";
  begin();
});
part("copy").addEventListener("click", async () => {
  getSelection().selectAllChildren(part("curl"));
  try {
    await navigator.clipboard.writeText(part("curl").textContent);
  } catch {
    document.execCommand("copy"); // where the page does not come over TLS or from this machine
  }
  part("copy").textContent = said("copied");
  setTimeout(() => { part("copy").textContent = said("copy"); }, 1500);
});
addEventListener("popstate", fromAddress);
addEventListener("paste", (event) => { if (event.clipboardData.files.length) choose(event.clipboardData.files); });
addEventListener("dragover", (event) => { event.preventDefault(); part("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) part("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); part("drop").hidden = true; choose(event.dataTransfer.files); });
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    part("text").select();
  } else move(event);
});

begin();
