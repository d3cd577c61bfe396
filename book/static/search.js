// Finds sections by the words of their title and text. sections.js, made with the site, calls it.
window.nullpaperSearch = (sections) => {
  const query = new URLSearchParams(location.search).get("q") || "";
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const results = document.getElementById("search-results");
  document.querySelectorAll("input[name=q]").forEach((input) => (input.value = query));
  if (!words.length) return;

  const count = (text, word) => text.split(word).length - 1;
  const found = [];
  for (const [page, title, address, text] of sections) {
    const head = title.toLowerCase();
    const body = text.toLowerCase();
    if (!words.every((word) => head.includes(word) || body.includes(word))) continue;
    const score = words.reduce((sum, word) => sum + 10 * count(head, word) + Math.min(5, count(body, word)), 0);
    found.push({ page, title, address, text, body, score });
  }
  found.sort((a, b) => b.score - a.score);

  const excerpt = ({ text, body }) => {
    const first = Math.max(0, Math.min(...words.map((word) => body.indexOf(word)).filter((at) => at >= 0)) - 80) || 0;
    const piece = text.slice(first, first + 240);
    const line = document.createElement("p");
    line.className = "context";
    const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
    for (const part of piece.split(new RegExp(`(${escaped})`, "i"))) {
      const hit = words.includes(part.toLowerCase());
      line.append(hit ? Object.assign(document.createElement("mark"), { textContent: part }) : part);
    }
    return line;
  };
  const summary = document.createElement("p");
  summary.textContent = `${found.length} sections have ${query}.`;
  const list = document.createElement("ul");
  for (const one of found.slice(0, 50)) {
    const link = document.createElement("a");
    link.href = one.address;
    link.textContent = one.title === one.page ? one.title : `${one.page}: ${one.title}`;
    const item = document.createElement("li");
    item.append(link, excerpt(one));
    list.append(item);
  }
  results.replaceChildren(summary, list);
};
