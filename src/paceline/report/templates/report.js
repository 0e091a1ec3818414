"use strict";
(function () {
  const source = document.getElementById("figures");
  const figures = source ? JSON.parse(source.textContent) : {};
  const nodes = Object.keys(figures).map(function (name) { return document.getElementById(name); });

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function styled(figure) {
    const data = figure.data.map(function (trace) {
      const own = colour(trace.meta || "c0");
      const styled = Object.assign({}, trace, { marker: { color: own }, line: { color: own, width: 2 } });
      if (trace.meta === "bound") { styled.line.dash = "dash"; }
      if (trace.type === "bar") { delete styled.line; }
      return styled;
    });
    const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
    const layout = Object.assign({}, figure.layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 56, r: 12, t: 12, b: 48 }, bargap: 0.12, hovermode: "closest",
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0 },
      xaxis: Object.assign({}, axis, figure.layout.xaxis),
      yaxis: Object.assign({}, axis, figure.layout.yaxis)
    });
    return { data: data, layout: layout };
  }

  const options = { displaylogo: false, responsive: true, displayModeBar: false };

  function draw() {
    return Promise.all(nodes.map(function (node) {
      const made = styled(figures[node.id]);
      return window.Plotly.react(node, made.data, made.layout, options);
    }));
  }

  if (nodes.length) {
    draw().then(function () { document.documentElement.dataset.drawn = String(nodes.length); });
    ["(prefers-color-scheme: dark)", "print"].forEach(function (query) {
      window.matchMedia(query).addEventListener("change", draw);
    });
    window.addEventListener("beforeprint", function () {
      nodes.forEach(function (node) { window.Plotly.Plots.resize(node); });
    });
  }
})();
