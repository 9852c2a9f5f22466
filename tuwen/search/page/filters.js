// What results are narrowed to: a list for columns of few values, two ends for columns of numbers.

import { said } from "./words.js";

// Fills an element with the filters of columns, as the service describes them; `chosen` is changed by them, `changed` called.
export function showFilters(element, columns, chosen, changed) {
  const made = Object.entries(columns).map(([name, column]) => {
    const label = document.createElement("label");
    label.append(`${name} `, ...(KINDS[column.kind] ?? list)(name, column, chosen, changed));
    return label;
  });
  element.replaceChildren(...made);
  element.hidden = !made.length;
}

function list(name, { values }, chosen, changed) {
  const select = document.createElement("select");
  select.name = name;
  select.add(new Option(said("any"), ""));
  values.forEach((value, k) => select.add(new Option(String(value), k)));
  const at = values.indexOf(chosen[name]);
  select.value = at < 0 ? "" : at;
  select.addEventListener("change", () => {
    if (select.value === "") delete chosen[name];
    else chosen[name] = values[select.value];
    changed();
  });
  return [select];
}

// The range that the texts of the two ends stand for: {min, max} as far as they are given, null where one is no number.
// "10..20" in either field is both ends, as on the command line.
export function rangeOf(texts) {
  const [low, high] = (texts.find((text) => text.includes("..")) ?? texts.join("..")).split("..");
  const range = {};
  for (const [end, text] of [["min", low], ["max", high]]) {
    if (!text.trim()) continue;
    range[end] = Number(text);
    if (!Number.isFinite(range[end])) return null;
  }
  return range;
}

function ends(name, column, chosen, changed) {
  const inputs = ["min", "max"].map((end) => {
    const input = document.createElement("input");
    Object.assign(input, { inputMode: "decimal", name: `${name} ${end}`, placeholder: column[end] ?? "", title: said("range") });
    input.setAttribute("aria-label", `${name} ${end}`);
    input.value = chosen[name]?.[end] ?? "";
    return input;
  });
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const range = rangeOf(inputs.map((field) => field.value));
      input.setCustomValidity(range ? "" : said("range"));
      if (!range) return input.reportValidity();
      inputs[0].value = range.min ?? "";
      inputs[1].value = range.max ?? "";
      for (const field of inputs) field.setCustomValidity("");
      if (Object.keys(range).length) chosen[name] = range;
      else delete chosen[name];
      changed();
    });
  }
  return [inputs[0], " – ", inputs[1]];
}

// Two days; months too are days here, the first and the last.
function days(name, column, chosen, changed) {
  const inputs = ["min", "max"].map((end) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "date", name: `${name} ${end}`, min: day(column.min, "01"), max: day(column.max, "31") });
    input.setAttribute("aria-label", `${name}: ${said(end === "min" ? "from" : "to")}`);
    input.value = chosen[name]?.[end] ?? "";
    return input;
  });
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const range = {};
      if (inputs[0].value) range.min = inputs[0].value.slice(0, column.min.length);
      if (inputs[1].value) range.max = inputs[1].value;
      if (Object.keys(range).length) chosen[name] = range;
      else delete chosen[name];
      changed();
    });
  }
  return [inputs[0], " – ", inputs[1]];
}

const day = (text, last) => (text.length === 7 ? `${text}-${last}` : text);
const KINDS = { number: ends, date: days };
