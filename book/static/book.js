// Tables that sort, and a dark mode for them. Loaded on every page of the book.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const root = document.documentElement;
  const NUMBER = /^[<>≤≥≈±~+]?\s*([-−]?)\s*(0|0?\.\d+|[1-9][\d,]*|0\.\d+)(\.\d+)?(e[-+]?\d+)?(?![\d.])/i;

  const follow = () => root.classList.toggle("dark", root.dataset.theme === "dark");
  new MutationObserver(follow).observe(root, { attributeFilter: ["data-theme"] });
  follow();

  // "1,000 [900, 1,100]" sorts as 1000, "01 (a)" as a word, an empty cell or a dash as nothing.
  const order = (text) => {
    const found = text.match(NUMBER);
    return found && Number((found[1] ? "-" : "") + found[2].replace(/,/g, "") + (found[3] || "") + (found[4] || ""));
  };
  const empty = (text) => /^(|nan|none|[-–—])$/i.test(text);

  const enhance = (table, DataTable) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const width = Math.max(...rows.map((row) => row.cells.length));
    if (rows.some((row) => row.cells.length !== width || row.querySelector("[colspan]"))) return;
    for (let column = 0; column < width; column++) {
      const cells = rows.map((row) => row.cells[column]);
      const texts = cells.map((cell) => cell.textContent.trim());
      const numbers = texts.map(order);
      const numeric = numbers.some((n) => n !== null) && texts.every((text, i) => numbers[i] !== null || empty(text));
      if (numeric) cells.forEach((cell, i) => cell.setAttribute("data-order", numbers[i] === null ? "" : numbers[i]));
    }
    const whole = rows.length <= 25 || table.matches(".np-verdicts");
    new DataTable(table, {
      order: [],
      autoWidth: false,
      titleRow: table.tHead.rows.length - 1,
      paging: !whole,
      pageLength: 25,
      layout: {
        topStart: null,
        topEnd: rows.length > 10 ? "search" : null,
        bottomStart: whole ? null : "info",
        bottomEnd: whole ? null : "paging",
      },
    });
  };

  document.addEventListener("DOMContentLoaded", () => {
    const tables = [...document.querySelectorAll("article table")].filter(
      (table) => table.tHead && table.tBodies.length === 1 && table.tBodies[0].rows.length > 1
    );
    if (!tables.length) return;
    window.nullpaperTables = async (source) => {
      const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const { default: DataTable } = await import(address);
      tables.forEach((table) => enhance(table, DataTable));
      root.dataset.tables = "ready";
    };
    const script = document.createElement("script");
    script.src = `${here}tables.js`;
    document.head.append(script);
  });
})();
