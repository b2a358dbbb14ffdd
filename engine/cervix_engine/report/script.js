"use strict";
// Sorting and filtering. Names are only ever read as text and compared: nothing here makes HTML.
const byId = (id) => document.getElementById(id);

function sortBy(button) {
  const head = button.closest("th");
  const column = [...head.parentNode.children].indexOf(head);
  const body = button.closest("table").tBodies[0];
  const numeric = button.dataset.sort === "number";
  const current = head.getAttribute("aria-sort");
  const descending = current ? current === "ascending" : numeric;
  const value = (row) => row.children[column].dataset.value;
  const rows = [...body.rows].sort((a, b) =>
    numeric ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true }));
  if (descending) rows.reverse();
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
}

function filter(id) {
  const list = byId(id);
  const text = document.querySelector(`input[data-filter="${id}"]`).value.toLowerCase();
  const select = document.querySelector(`select[data-class="${id}"]`);
  let shown = 0;
  for (const item of list.children) {
    const fits = item.dataset.text.toLowerCase().includes(text) &&
      (!select || !select.value || item.dataset.class === select.value);
    item.hidden = !fits;
    shown += fits;
  }
  document.querySelector(`output[data-count="${id}"]`).textContent = `${shown} of ${list.children.length}`;
}

for (const button of document.querySelectorAll("button[data-sort]"))
  button.addEventListener("click", () => sortBy(button));
for (const input of document.querySelectorAll("input[data-filter]")) {
  input.addEventListener("input", () => filter(input.dataset.filter));
  filter(input.dataset.filter);
}
for (const select of document.querySelectorAll("select[data-class]"))
  select.addEventListener("change", () => filter(select.dataset.class));
