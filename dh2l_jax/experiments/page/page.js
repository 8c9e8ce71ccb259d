"use strict";

// A column of numbers is sorted by value, others as text; what is missing comes last.
const value = (cell) => {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace("−", "-").replaceAll(",", ""));
  return { text, number: text === "–" || text === "" ? NaN : number };
};
const isText = (table, column) =>
  [...table.tBodies[0].rows].some((row) => {
    const { text, number } = value(row.cells[column]);
    return text !== "–" && text !== "" && Number.isNaN(number);
  });

for (const table of document.querySelectorAll("table")) {
  if (table.matches(".cells")) continue;
  const heads = table.tHead.rows[0].cells;
  for (const [column, head] of [...heads].entries()) {
    if (!isText(table, column)) continue;
    for (const row of table.rows) row.cells[column]?.classList.add("text");
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const text = isText(table, column);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = text ? "ascending" : "descending";
      const second = text ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => {
        if (text) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
        if (Number.isNaN(a.number) || Number.isNaN(b.number)) {
          return Number.isNaN(a.number) - Number.isNaN(b.number);
        }
        return sign * (a.number - b.number);
      });
      body.append(...rows.map(([, row]) => row));
    });
  }

  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  label.append("Filter ", input);
  const all = body.rows.length;
  const filter = () => {
    const wanted = input.value.toLocaleLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.value = `${shown} of ${all} rows`;
  };
  input.addEventListener("input", filter);
  const line = document.createElement("div");
  line.className = "filter";
  line.append(label, count);
  table.parentElement.before(line);
  filter();
}

// Of the branches of the confusion one is shown, that of the address; Escape goes up.
const branches = [...document.querySelectorAll(".branch")];
const zoom = (focus) => {
  const wanted = document.getElementById(location.hash.slice(1));
  const shown = branches.includes(wanted) ? wanted : branches.find((branch) => !branch.hidden);
  for (const branch of branches) branch.hidden = branch !== (shown ?? branches[0]);
  if (focus && shown === wanted && wanted) wanted.focus();
};
for (const branch of branches.slice(1)) branch.hidden = true;
addEventListener("hashchange", () => zoom(true));
addEventListener("keydown", (event) => {
  const open = branches.find((branch) => !branch.hidden);
  if (event.key === "Escape" && open?.contains(document.activeElement)) {
    [...open.querySelectorAll("h3 a")].at(-1)?.click();
  }
});
zoom(false);

// On paper the numbers of all pictures are there.
const closed = [...document.querySelectorAll("details:not([open])")];
addEventListener("beforeprint", () => closed.forEach((part) => (part.open = true)));
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
