// What a page of the book shows and what it cuts, for the width that the window has.
() => {
  const article = document.querySelector("article") || document.body;
  const right = article.getBoundingClientRect().right + 1;
  const shown = (selector) => [...article.querySelectorAll(selector)].filter((one) => one.getClientRects().length);
  const beyond = (one) => {
    let box = one.parentElement; // the first that would cut it
    while (box !== article && getComputedStyle(box).overflowX === "visible") box = box.parentElement;
    return one.getBoundingClientRect().right > Math.min(right, box.getBoundingClientRect().right + 1);
  };
  const name = (table) => [...table.rows[0].cells].map((cell) => cell.innerText.trim()).join(" | ");
  const tables = shown("table").filter((table) => table.rows.length);
  const firstThree = (table) => [...table.rows[0].cells].slice(0, 3);
  return {
    text: article.innerText,
    formulas: article.querySelectorAll(".math").length,
    typeset: article.querySelectorAll(".math mjx-container svg").length,
    refused: document.querySelectorAll("[data-mjx-error], [data-mml-node=merror]").length,
    cut: shown(".math mjx-container > svg").filter(beyond).map((one) => one.closest(".math").innerText),
    broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
    silent: shown("img").filter((image) => image.alt.split(" ").length < 3).map((image) => image.src),
    wide: shown("img").filter(beyond).map((image) => image.src),
    plain: tables.filter((table) => !table.matches(".dataTable") && table.tHead && table.tBodies[0].rows.length > 1).map(name),
    tables: tables.filter(beyond).map(name),
    hidden: tables.filter((table) => firstThree(table).some(beyond)).map(name),
    width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth),
  };
}
