// A result: its picture, its scores, and where the words of the query matched.

import { ask, explain } from "./service.js";
import { said, speak, spoken } from "./words.js";

const HOVER = 150; // ms the pointer rests on a picture before its words are asked for

// columns: names of those that the card shows; the larger view has all.
export function card(result, place, text, similar, reranked, columns) {
  const made = document.getElementById("card").content.cloneNode(true).firstElementChild;
  speak(made);
  const caption = [...(result.texts[spoken()] ?? []), ...Object.values(result.texts).flat()][0] ?? result.id;
  made.querySelector(".caption").textContent = caption;
  made.querySelector(".caption").title = [result.id, ...Object.values(result.texts).flat()].join("\n");
  made.querySelector(".id").textContent = result.id;
  made.querySelector(".columns").textContent = columnsOf(result, columns).join(" · ");
  made.querySelector("dl").hidden = result.first === null && !reranked;
  for (const name of ["first", "score"]) {
    made.querySelector(`.${name} dd`).textContent = result[name] === null ? "–" : result[name].toFixed(3);
  }
  made.querySelector(".score").hidden = !reranked; // a picture that was not re-ranked has no score but the first
  made.querySelector(".larger").addEventListener("click", () => enlarge(made, result));
  const picture = made.querySelector(".picture");
  picture.setAttribute("aria-label", said("result", place, caption));
  made.querySelector(".similar").addEventListener("click", () => similar(result.id));
  show(made.querySelector("img"), result.thumbnail);
  if (text) wordsOnDemand(made, result.id, text);
  return made;
}

const columnsOf = ({ columns }, names = Object.keys(columns)) => names.map((name) => [name, columns[name] ?? null])
  .filter(([, value]) => value !== null && value !== "" && !(Array.isArray(value) && !value.length))
  .map(([name, value]) => `${name}: ${Array.isArray(value) ? value.join(", ") : value}`);

// The picture as large as the index keeps it, with its id, all its texts and all its columns.
function enlarge(made, result) {
  const dialog = document.getElementById("larger");
  const about = [result.id, ...Object.entries(result.texts).flatMap(([name, texts]) => texts.map((text) => `${name}: ${text}`))];
  dialog.querySelector("ul").replaceChildren(...[...about, ...columnsOf(result)].map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
  show(dialog.querySelector("img"), result.thumbnail);
  dialog.showModal();
}

async function show(image, address) {
  try {
    const blob = await (await ask(address)).blob();
    const url = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch { /* the card says the rest */ }
}

// The words appear when the picture is pointed at, focused or tapped; each shows its map likewise.
function wordsOnDemand(made, id, text) {
  const picture = made.querySelector(".picture");
  let asked = false;
  let timer = 0;
  const want = async () => {
    if (asked) return;
    asked = true;
    try {
      const { words, part } = await explain(id, text);
      made.querySelector(".words").append(...words.map(({ word, map }) => button(word, map, part, made)));
    } catch (error) {
      made.querySelector(".words").title = error.message;
    }
  };
  picture.addEventListener("click", want);
  picture.addEventListener("focus", want);
  made.querySelector(".frame").addEventListener("pointerenter", () => { timer = setTimeout(want, HOVER); });
  made.querySelector(".frame").addEventListener("pointerleave", () => { clearTimeout(timer); });
}

function button(word, map, part, made) {
  const one = document.createElement("button");
  one.type = "button";
  one.textContent = word;
  const on = () => { clear(made); one.classList.add("shown"); draw(made, map, part); };
  const off = () => { if (one.classList.contains("shown")) clear(made); };
  one.addEventListener("pointerenter", on);
  one.addEventListener("focus", on);
  one.addEventListener("click", on);
  one.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") off(); });
  one.addEventListener("blur", off);
  one.addEventListener("keydown", (event) => { if (event.key === "Escape") off(); });
  return one;
}

export function clear(made) {
  for (const shown of made.querySelectorAll(".words .shown")) shown.classList.remove("shown");
  const canvas = made.querySelector("canvas");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

// The map lies over a part of the whole picture and is stretched to that part's size; style then crops both alike.
function draw(made, map, [left, top, right, bottom]) {
  const small = document.createElement("canvas");
  [small.height, small.width] = [map.length, map[0].length];
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, k) => pixels.data.set([255, 70 + 150 * value, 0, 215 * Math.max(0, value)], 4 * k));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const image = made.querySelector("img");
  const canvas = made.querySelector("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth || 1, image.naturalHeight || 1];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const [width, height] = [canvas.width, canvas.height];
  context.drawImage(small, left * width, top * height, (right - left) * width, (bottom - top) * height);
}
