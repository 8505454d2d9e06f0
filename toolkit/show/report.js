// Values under the pointer, lines on and off, pictures large, films in step, tables sorted, light or dark.
// The page is complete without this script.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MOST_SAID = 12; // lines of a chart whose values are shown at a time
  const root = document.documentElement;
  const all = (selector, where = document) => [...where.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const element = (name, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };
  const button = (text, label, act) => {
    const node = element("button", { type: "button", title: label, onclick: act }, text);
    node.setAttribute("aria-label", label);
    return node;
  };
  root.classList.add("js");

  // -- light or dark ---------------------------------------------------------------------------------------------
  const stored = (value) => {
    try { // a file's page may not keep anything
      if (value !== undefined) localStorage.setItem("toolkit-theme", value);
      return localStorage.getItem("toolkit-theme") || "";
    } catch { return value || ""; }
  };
  const THEMES = ["", "light", "dark"];
  const theme = button("", "light or dark", () => paint(stored(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % 3])));
  const paint = (name) => {
    root.dataset.theme = THEMES.includes(name) ? name : "";
    theme.textContent = { "": "◐ auto", light: "☀ light", dark: "☾ dark" }[root.dataset.theme];
  };
  theme.id = "theme";
  document.querySelector("header").append(theme);
  paint(stored());

  // -- curves ----------------------------------------------------------------------------------------------------
  const tip = document.body.appendChild(element("div", { id: "tip" }));
  const make = (parent, name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return parent.appendChild(node);
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
  };
  const hidden = (figure, line) => figure.querySelector(`g[data-line="${line}"]`)?.style.display === "none";

  const show = (figure, series, event) => {
    const svg = figure.querySelector("svg:last-child"), box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const lines = series.filter((one) => one.points.length && !hidden(figure, one.line));
    const hits = lines.map((one) => ({ ...one, point: nearest(one.points, x) }));
    if (!hits.length) return;
    const marks = svg.querySelector(".marks") || make(svg, "g", { class: "marks" });
    marks.replaceChildren();
    const at = hits.reduce((a, b) => (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point;
    make(marks, "line", { class: "pointer", x1: at[0], x2: at[0], y1: 10, y2: 206 });
    tip.replaceChildren(`step ${at[2]}`);
    hits.sort((a, b) => Math.abs(a.point[1] - y) - Math.abs(b.point[1] - y));
    const said = hits.slice(0, MOST_SAID).sort((a, b) => a.point[1] - b.point[1]);
    for (const hit of said) {
      make(marks, "circle", { class: `dot s${hit.color}`, r: 3.5, cx: hit.point[0], cy: hit.point[1] });
      const dot = element("i");
      dot.style.background = `var(--s${hit.color})`;
      tip.append(element("div", {}, dot, `${hit.label}: ${hit.point[3]}`));
    }
    if (hits.length > said.length) tip.append(element("div", {}, `and ${hits.length - said.length} more`));
    tip.style.display = "block";
    tip.style.left = `${clamp(event.clientX + 14, 4, innerWidth - tip.offsetWidth - 6)}px`;
    tip.style.top = `${clamp(event.clientY + 14, 4, innerHeight - tip.offsetHeight - 6)}px`;
  };
  const wire = (figure) => {
    let series;
    const svg = figure.querySelector("svg:last-child");
    svg.addEventListener("pointermove", (event) => show(figure, (series ??= JSON.parse(figure.dataset.chart)), event));
    svg.addEventListener("pointerleave", () => {
      svg.querySelector(".marks")?.remove();
      tip.style.display = "none";
    });
  };
  const charts = all("[data-chart]");
  for (const figure of charts) {
    wire(figure);
    figure.querySelector("figcaption").append(button("⤢", "large", () => open(charts, charts.indexOf(figure))));
    figure.querySelector("figcaption button").className = "enlarge";
  }
  for (const key of all(".legend button")) {
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", on);
      for (const mark of all(`g[data-line="${key.dataset.line}"]`, key.closest("section"))) {
        mark.style.display = on ? "" : "none";
      }
    });
  }
  for (const box of all("input.single")) {
    box.addEventListener("change", () => box.closest("section").classList.toggle("singles", box.checked));
  }

  // -- pictures and charts, large --------------------------------------------------------------------------------
  let shown = [], at = 0, zoom = 0; // 0: fits the window
  const stage = element("div", { id: "stage" }), title = element("span"), percent = element("output");
  const sized = () => {
    const image = stage.querySelector("img");
    for (const node of scaling) node.hidden = !image;
    if (!image) return;
    const fit = Math.min((stage.clientWidth - 20) / image.naturalWidth, (stage.clientHeight - 20) / image.naturalHeight);
    const factor = zoom || fit;
    image.style.width = `${image.naturalWidth * factor}px`;
    image.style.imageRendering = factor > 1.5 ? "pixelated" : "auto";
    image.style.cursor = zoom ? "zoom-out" : "zoom-in";
    percent.textContent = `${Math.round(factor * 100)} %`;
    return factor;
  };
  const rescale = (by) => {
    const before = sized();
    zoom = clamp(before * by, 0.05, 32);
    sized();
  };
  const scaling = [
    button("−", "smaller", () => rescale(0.5)), percent, button("+", "larger", () => rescale(2)),
    button("fit", "fit the window", () => { zoom = 0; sized(); }),
  ];
  const go = (to) => {
    at = (to + shown.length) % shown.length;
    zoom = 0;
    const item = shown[at], copy = item.matches("img") ? element("img", { src: item.src, alt: item.alt }) : item.cloneNode(true);
    stage.replaceChildren(copy);
    if (copy.matches("img")) {
      copy.onload = sized;
      copy.onclick = () => { zoom = zoom ? 0 : Math.max(1, sized() * 3); sized(); };
    } else {
      copy.querySelector("button")?.remove();
      wire(copy);
    }
    const said = item.closest("figure").querySelector("figcaption").textContent.replace("⤢", "");
    title.textContent = `${said} (${at + 1} of ${shown.length})`;
    sized();
  };
  const open = (items, index) => {
    shown = items;
    dialog.showModal();
    dialog.append(tip); // what is not in a modal dialog lies behind it
    go(index);
  };
  const dialog = element("dialog", {}, element("div", { className: "bar" },
    button("‹", "the one before", () => go(at - 1)), button("›", "the next one", () => go(at + 1)), title, ...scaling,
    button("✕", "close", () => dialog.close())), stage);
  dialog.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), "+": () => rescale(2), "-": () => rescale(0.5) };
    if (act[event.key] && !(zoom && event.key.startsWith("Arrow"))) { event.preventDefault(); act[event.key](); }
  });
  dialog.addEventListener("close", () => { stage.replaceChildren(); document.body.append(tip); });
  document.body.append(dialog);
  addEventListener("resize", () => { if (dialog.open) sized(); });
  for (const image of all(".media img")) {
    const holder = element("button", { className: "zooms", type: "button" });
    holder.setAttribute("aria-label", `large: ${image.alt}`);
    image.replaceWith(holder);
    holder.append(image);
    holder.addEventListener("click", () => {
      const row = all("img", image.closest(".media"));
      open(row, row.indexOf(image));
    });
  }

  // -- films -----------------------------------------------------------------------------------------------------
  for (const film of all("video")) {
    const crisp = () => { film.style.imageRendering = film.clientWidth > 1.5 * film.videoWidth ? "pixelated" : "auto"; };
    film.addEventListener("loadedmetadata", crisp);
    crisp();
  }

  // -- films in step ---------------------------------------------------------------------------------------------
  for (const box of all(".players")) {
    const films = all("video", box);
    if (films.length < 2) continue;
    const rate = Math.max(...films.map((film) => Number(film.dataset.rate))) || 24;
    const length = () => Math.max(...films.map((film) => film.duration || 0));
    const lead = () => films.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
    const frames = () => Math.max(1, Math.round(length() * rate));
    const frame = () => clamp(Math.floor(lead().currentTime * rate + 1e-3), 0, frames() - 1);
    let playing = false;
    const place = (number) => {
      const time = (clamp(number, 0, frames() - 1) + 0.5) / rate; // the middle of a frame
      for (const film of films) film.currentTime = Math.min(time, Math.max(0, (film.duration || 0) - 0.5 / rate));
      say();
    };
    const range = element("input", { type: "range", min: 0, value: 0, step: 1 });
    range.setAttribute("aria-label", "frame");
    range.addEventListener("input", () => { pause(); place(Number(range.value)); });
    const told = element("output");
    const say = () => {
      range.max = frames() - 1;
      range.value = frame();
      told.textContent = `frame ${frame() + 1} of ${frames()} · ${lead().currentTime.toFixed(2)} s`;
    };
    const pause = () => {
      playing = false;
      toggle.textContent = "▶";
      for (const film of films) film.pause();
    };
    const tick = () => {
      if (!playing) return;
      const first = lead();
      if (first.ended) {
        for (const film of films) film.currentTime = 0;
        for (const film of films) film.play();
      }
      for (const film of films) {
        const apart = Math.abs(film.currentTime - first.currentTime);
        if (!film.seeking && !film.ended && apart > 1 / rate && first.currentTime < film.duration) film.currentTime = first.currentTime;
      }
      say();
      requestAnimationFrame(tick);
    };
    const play = () => {
      playing = true;
      toggle.textContent = "❚❚";
      if (frame() >= frames() - 1) place(0);
      for (const film of films) film.play().catch(() => film.error || pause()); // a damaged one holds nobody up
      tick();
    };
    const toggle = button("▶", "play or pause all", () => (playing ? (pause(), place(frame())) : play()));
    const step = (by) => () => { pause(); place(frame() + by); };
    const speed = element("select", { onchange: () => films.forEach((film) => { film.playbackRate = Number(speed.value); }) });
    for (const factor of [0.25, 0.5, 1, 2]) speed.append(element("option", { value: factor, selected: factor === 1 }, `×${factor}`));
    speed.setAttribute("aria-label", "speed");
    for (const film of films) {
      Object.assign(film, { controls: false, loop: false });
      film.addEventListener("seeked", say);
      film.addEventListener("loadedmetadata", say);
    }
    box.before(element("div", { className: "bar" },
      toggle, button("‹", "one frame back", step(-1)), button("›", "one frame on", step(1)), range, told, speed));
    say();
  }

  // -- tables ----------------------------------------------------------------------------------------------------
  const worth = (row, column) => {
    const text = row.cells[column].textContent, number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  for (const table of all("table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const words = head.textContent;
      head.replaceChildren(button(words, `sort by ${words}`, () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of all("th", table)) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [worth(row, column), row]);
        const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
        rows.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
        body.append(...rows.map(([, row]) => row));
      }));
    });
    if (body.rows.length <= 15) continue;
    const filter = element("input", { type: "search", placeholder: `filter ${body.rows.length} rows`, className: "filter" });
    filter.setAttribute("aria-label", "show the rows that hold these words");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    table.closest(".table").before(filter);
  }
  document.body.dataset.charts = charts.length;
})();
