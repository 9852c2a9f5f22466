// Which columns the cards show: the first few, until this browser was told others.

const FEW = 4;
const KEPT = "columns";

let chosen = JSON.parse(localStorage.getItem(KEPT) ?? "null"); // names; null: never chosen

export const shownOf = (names) => (chosen ? names.filter((name) => chosen.includes(name)) : names.slice(0, FEW));

// Fills an element with a box to tick for every column; `changed` is called when one is ticked or cleared.
export function showChoice(element, names, changed) {
  element.hidden = !names.length;
  const listed = [...element.querySelectorAll("input")].map(({ name }) => name);
  if (listed.join("\n") === names.join("\n")) return; // the box just ticked keeps the focus
  element.querySelector("div").replaceChildren(...names.map((name) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name, checked: shownOf(names).includes(name) });
    box.addEventListener("change", () => {
      const shown = new Set(shownOf(names));
      if (box.checked) shown.add(name);
      else shown.delete(name);
      chosen = [...(chosen ?? []).filter((other) => !names.includes(other)), ...shown]; // other indexes' stay
      localStorage.setItem(KEPT, JSON.stringify(chosen));
      changed();
    });
    label.append(box, ` ${name}`);
    return label;
  }));
}
