"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const n = data.paths.length;
  const $ = (id) => document.getElementById(id);
  const grid = $("grid");
  if (!n || !grid) return;

  const PER_PAGE = 120;
  const [tileHeight, tileWidth] = data.tile;
  const missing = new Set(data.missing);
  const selected = new Set();
  const lower = data.paths.map((path) => path.toLowerCase());
  let order = [];      // candidates that pass the filters, in the order shown
  let page = 0;
  let anchor = null;   // where a range of selected tiles began

  // Sheets become blobs on first use: a page of tiles touches few of them.
  const urls = new Map();
  const sheetUrl = (number) => {
    if (!urls.has(number)) {
      const raw = atob(data.sheets[number]);
      const bytes = new Uint8Array(raw.length);
      for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
      urls.set(number, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
    }
    return urls.get(number);
  };

  const name = (answer) => {
    if (answer < 0) return "no number";
    const known = data.names[answer];
    return known && known !== String(answer) ? `${answer} ${known}` : String(answer);
  };
  const label = (number) => (number < 0 ? "" : data.classes[number] ?? String(number));
  const short = (value) => (value === null ? "–" : value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toPrecision(3));

  const paint = (element, i) => {
    element.className = "thumb" + (Math.max(tileHeight, tileWidth) <= 48 ? " crisp" : "");
    element.style.aspectRatio = `${tileWidth} / ${tileHeight}`;
    if (missing.has(i)) {
      element.classList.add("gone");
      return;
    }
    const sheet = Math.floor(i / data.per_sheet);
    const inside = i % data.per_sheet;
    const column = inside % data.per_row;
    const row = Math.floor(inside / data.per_row);
    const rows = Math.ceil(Math.min(data.per_sheet, n - sheet * data.per_sheet) / data.per_row);
    element.style.backgroundImage = `url("${sheetUrl(sheet)}")`;
    element.style.backgroundSize = `${data.per_row * 100}% ${rows * 100}%`;
    element.style.backgroundPosition = `${(100 * column) / Math.max(1, data.per_row - 1)}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
  };

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const says = (who, answer, className) => {
    const line = element("span", "says");
    line.append(element("i", "", who), element("b", className, answer));
    return line;
  };

  const tile = (i) => {
    const made = element("button", "tile");
    made.type = "button";
    made.dataset.i = i;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", selected.has(i));
    made.title = data.paths[i];
    const thumb = element("span");
    paint(thumb, i);
    thumb.setAttribute("role", "img");
    thumb.setAttribute("aria-label", `candidate ${data.paths[i]}`);
    made.append(thumb, says("model", name(data.teacher[i]), "model"), says("control", name(data.control[i]), ""));
    made.append(element("span", "path", "\u200e" + data.paths[i]));
    return made;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(order.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = order.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    grid.replaceChildren(...(shown.length ? shown.map(tile) : [element("p", "empty", "No candidate fits these filters.")]));
    $("pageno").textContent = `page ${page + 1} of ${pages}`;
    $("prev").disabled = page === 0;
    $("next").disabled = page === pages - 1;
    count();
  };

  const count = () => {
    $("count").textContent = `${order.length.toLocaleString("en")} of ${n.toLocaleString("en")} candidates` +
      (selected.size ? `, ${selected.size.toLocaleString("en")} selected` : "");
    $("export").textContent = selected.size ? `Export ${selected.size.toLocaleString("en")} selected as CSV` : "Export these as CSV";
    $("clear").disabled = selected.size === 0;
  };

  const keys = {
    score: (i) => -(data.scores[i] ?? Infinity),
    p: (i) => data.p_values[i] ?? 2,
    path: (i) => lower[i],
    label: (i) => data.labels[i],
  };

  const filter = () => {
    const text = $("search").value.trim().toLowerCase();
    const cluster = $("cluster").value;
    const answer = $("answer").value;
    order = [];
    for (let i = 0; i < n; i++) {
      if (cluster && data.clusters[i] !== cluster) continue;
      if (answer && String(data.teacher[i]) !== answer) continue;
      if (text && !lower[i].includes(text)) continue;
      order.push(i);
    }
    const key = keys[$("sort").value];
    if ($("sort").value !== "score") {
      const known = order.map((i) => [key(i), i]);
      known.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1]));
      order = known.map((pair) => pair[1]);
    }
    for (const chip of document.querySelectorAll(".chip[data-cluster]")) {
      chip.setAttribute("aria-pressed", chip.dataset.cluster === cluster);
    }
    page = 0;
    draw();
  };

  const toggle = (i, on) => {
    const want = on ?? !selected.has(i);
    if (want) selected.add(i); else selected.delete(i);
    const made = grid.querySelector(`[data-i="${i}"]`);
    if (made) made.setAttribute("aria-selected", want);
    count();
  };

  const open = (i) => {
    const big = element("span");
    paint(big, i);
    const list = element("dl");
    const rows = [
      ["model says", name(data.teacher[i])], ["control says", name(data.control[i])], ["label", label(data.labels[i]) || "none"],
      ["score", short(data.scores[i])], ["p-value", short(data.p_values[i])], ["group", data.clusters[i]],
      ["path", data.paths[i]], ["content", data.digests[i]],
    ];
    for (const [term, value] of rows) list.append(element("dt", "", term), element("dd", "", value));
    const box = element("div", "detail");
    const frame = element("div");
    frame.append(big);
    box.append(frame, list);
    $("detail").replaceChildren(box);
    $("dialog").dataset.i = i;
    $("dialog").showModal();
  };

  // A cell that a spreadsheet would run is made text; a path stays the same path with ./ before it.
  const risky = /^[\s]*[=+\-@\t\r\n]/;
  const cell = (value, isPath) => {
    let text = value === null ? "" : String(value);
    if (typeof value === "string" && risky.test(text)) text = (isPath ? "./" : "'") + text;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (chosen) => {
    const lines = ["path,label,id,teacher,control,score,p_value,cluster"];
    for (const i of chosen) {
      lines.push([
        cell(data.paths[i], true), cell(label(data.labels[i])), cell(`${data.digests[i]}:${data.paths[i]}`), data.teacher[i],
        data.control[i], cell(data.scores[i]), cell(data.p_values[i]), data.clusters[i],
      ].join(","));
    }
    return lines.join("\r\n") + "\r\n";
  };
  const save = () => {
    const chosen = selected.size ? [...selected].sort((a, b) => a - b) : order;
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv(chosen)], { type: "text/csv" }));
    link.download = "candidates.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  for (const id of ["search", "cluster", "answer", "sort"]) $(id).addEventListener("input", filter);
  $("prev").addEventListener("click", () => { page--; draw(); });
  $("next").addEventListener("click", () => { page++; draw(); });
  $("export").addEventListener("click", save);
  $("all").addEventListener("click", () => { for (const i of order) selected.add(i); draw(); });
  $("clear").addEventListener("click", () => { selected.clear(); draw(); });
  $("close").addEventListener("click", () => $("dialog").close());
  $("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) $("dialog").close(); });

  grid.addEventListener("click", (event) => {
    const made = event.target.closest(".tile");
    if (!made) return;
    const i = Number(made.dataset.i);
    if (event.shiftKey && anchor !== null) {
      const [a, b] = [order.indexOf(anchor), order.indexOf(i)].sort((x, y) => x - y);
      if (a >= 0) order.slice(a, b + 1).forEach((j) => toggle(j, true));
    } else {
      toggle(i);
      anchor = i;
    }
  });
  grid.addEventListener("dblclick", (event) => {
    const made = event.target.closest(".tile");
    if (made) open(Number(made.dataset.i));
  });
  document.addEventListener("click", (event) => {
    const chip = event.target.closest(".chip[data-cluster]");
    if (!chip) return;
    $("cluster").value = $("cluster").value === chip.dataset.cluster ? "" : chip.dataset.cluster;
    filter();
    $("gallery").scrollIntoView();
  });

  const move = (by) => {
    const tiles = [...grid.querySelectorAll(".tile")];
    const at = tiles.indexOf(document.activeElement);
    tiles[Math.min(Math.max(at + by, 0), tiles.length - 1)]?.focus();
  };
  const perLine = () => {
    const tiles = [...grid.querySelectorAll(".tile")];
    const second = tiles.findIndex((made) => made.offsetTop !== tiles[0].offsetTop);
    return second < 0 ? tiles.length : second;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog").open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) { $("search").focus(); event.preventDefault(); return; }
    if (event.key === "Escape" && event.target === $("search")) { $("search").value = ""; filter(); return; }
    if (typing) return;
    const onTile = event.target.closest?.(".tile");
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perLine(), ArrowUp: -perLine() };
    if (event.key === "]" || event.key === "[") { page += event.key === "]" ? 1 : -1; draw(); }
    else if (onTile && event.key in steps) { move(steps[event.key]); event.preventDefault(); }
    else if (onTile && event.key === "Enter") { open(Number(onTile.dataset.i)); event.preventDefault(); }
    else if (event.key === "a") { for (const i of order) selected.add(i); draw(); }
    else if (event.key === "c") { selected.clear(); draw(); }
  });

  filter();
  document.documentElement.dataset.ready = "yes";
})();
