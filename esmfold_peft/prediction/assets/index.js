// Sorts the table of all predictions by the column whose heading is clicked.

const body = document.querySelector("tbody");
const headings = [...document.querySelectorAll("thead th")];
const collator = new Intl.Collator(undefined, { numeric: true });

/** Numbers by size, words in the order of the language; empty cells come last in both directions. */
function compare(a, b, direction) {
  if (!a || !b) return !a - !b;
  const [x, y] = [Number(a), Number(b)];
  return direction * (Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y);
}

function sortBy(column) {
  const direction = headings[column].ariaSort === "ascending" ? -1 : 1;
  const keyed = [...body.rows].map((row) => ({ row, key: row.cells[column].textContent.trim() }));
  keyed.sort((a, b) => compare(a.key, b.key, direction));
  body.append(...keyed.map(({ row }) => row));
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].ariaSort = direction === 1 ? "ascending" : "descending";
}

headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => sortBy(column));
});
