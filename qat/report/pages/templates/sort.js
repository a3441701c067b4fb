// A click on the head of a column sorts its table by it: numbers by value, text by the alphabet; again, the other way round.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
    const missing = (value) => value === "" || value === "–";
    const compare = (a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // what was not measured stays at the end
      const numbers = [Number(a), Number(b)];
      const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
      return down ? -order : order;
    };
    [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach((row) => body.append(row));
  });
}
