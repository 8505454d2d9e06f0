// Values under the pointer for the curves. The page is complete without this script.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");
  const make = (parent, name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return parent.appendChild(node);
  };
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));

  const show = (svg, marks, series, event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const hits = series.filter((s) => s.points.length).map((s) => ({ ...s, point: nearest(s.points, x) }));
    if (!hits.length) return;
    marks.replaceChildren();
    const at = hits.reduce((a, b) => (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point;
    make(marks, "line", { class: "pointer", x1: at[0], x2: at[0], y1: 10, y2: 206 });
    tip.replaceChildren(`step ${at[2]}`);
    for (const hit of hits) {
      make(marks, "circle", { class: `dot s${hit.color}`, r: 3.5, cx: hit.point[0], cy: hit.point[1] });
      const row = document.createElement("div");
      const dot = document.createElement("i");
      dot.style.background = `var(--s${hit.color})`;
      row.append(dot, `${hit.label}: ${hit.point[3]}`);
      tip.append(row);
    }
    tip.style.display = "block";
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 6);
    const top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 6);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };

  const charts = document.querySelectorAll("[data-chart]");
  for (const figure of charts) {
    const series = JSON.parse(figure.dataset.chart);
    const svg = figure.querySelector("svg");
    const marks = make(svg, "g", {});
    svg.addEventListener("pointermove", (event) => show(svg, marks, series, event));
    svg.addEventListener("pointerleave", () => {
      marks.replaceChildren();
      tip.style.display = "none";
    });
  }
  document.body.dataset.charts = charts.length;
})();
