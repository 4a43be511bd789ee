"""The page of `scatter`: an HTML template with a script; plotly.js and the data are filled in."""

from string import Template

PAGE = Template(r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline';
           img-src data: blob:">
<title>$title</title>
<style>
  * { box-sizing: border-box }
  body { margin: 0; height: 100vh; display: flex; font: 14px system-ui, sans-serif; color: #222 }
  main { flex: 1; min-width: 0; display: flex; flex-direction: column }
  nav { display: flex; flex-wrap: wrap; gap: 8px 20px; padding: 12px 16px; border-bottom: 1px solid #e4e4e4 }
  nav label { color: #666 }
  select { font: inherit; max-width: 300px; margin-left: 6px; padding: 2px 4px }
  #plot { flex: 1; min-height: 0 }
  aside { width: 300px; padding: 16px; border-left: 1px solid #e4e4e4; background: #fafafa; overflow: auto }
  aside p { margin: 0 0 10px; overflow-wrap: anywhere }
  aside img { display: block; width: 100%; margin: 10px 0; border-radius: 4px }
  table { border-collapse: collapse; width: 100%; font-size: 12px; margin-bottom: 12px }
  caption { text-align: left; font-weight: 600; padding: 4px 0 }
  td { padding: 2px 0; border-top: 1px solid #e8e8e8 }
  td:last-child { text-align: right; font-variant-numeric: tabular-nums }
  .hint { color: #888 }
</style>
<body>
<main>
  <nav>
    <label>x <select id="x"></select></label>
    <label>y <select id="y"></select></label>
    <label>color <select id="color"></select></label>
  </nav>
  <div id="plot"></div>
</main>
<aside id="row"><p class="hint">Point at a dot to see its row.</p></aside>
<script type="application/json" id="data">$data</script>
<script>$plotly</script>
<script id="explorer">
const NONE = "(none)", MANY = 12, NUM_SVG = 3000;
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#5e4fa2"];
const BUTTONS = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"];  // none that uploads
const data = JSON.parse(document.getElementById("data").textContent);
const columns = data.columns, rows = columns.image_id.map((_, i) => i);

const known = values => values.filter(value => value !== null);
const isBool = values => known(values).length > 0 && known(values).every(value => typeof value === "boolean");
const isText = values => known(values).some(value => typeof value === "string");
const isWhole = values => known(values).every(Number.isInteger);
const kinds = values => [...new Set(values)].sort((a, b) => a > b ? 1 : a < b ? -1 : 0);
const short = value => typeof value === "number" && !Number.isInteger(value) ? +value.toPrecision(4) : value;
const show = value => value === null ? "-" : String(short(value));
const escaped = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

// false and true as 0 and 1, spread a little so that dots do not hide each other
const spread = i => 0.3 * ((i * 0.618034) % 1 - 0.5);
const position = values => isBool(values) ? values.map((v, i) => v === null ? null : +v + spread(i)) : values;

function axis(name) {
  const two = {tickvals: [0, 1], ticktext: ["false", "true"], range: [-0.5, 1.5]};
  return {title: {text: escaped(name)}, automargin: true, zeroline: false, gridcolor: "#eee",
          ...(isBool(columns[name]) ? two : {})};
}

function trace(chosen, x, y, more) {
  const value = (name, i) => `$${escaped(name)} $${escaped(show(columns[name][i]))}`;
  const label = i => `$${value("image_id", i)}, $${value("draw", i)}<br>$${value(x, i)}<br>$${value(y, i)}`;
  const [xs, ys] = [position(columns[x]), position(columns[y])];
  return {type: rows.length > NUM_SVG ? "scattergl" : "scatter", mode: "markers", customdata: chosen,
          x: chosen.map(i => xs[i]), y: chosen.map(i => ys[i]), text: chosen.map(label),
          hovertemplate: "%{text}<extra></extra>", ...more};
}

function traces(x, y, color) {
  const style = {size: 8, opacity: 0.8, line: {width: 0.5, color: "white"}};
  if (color === NONE) return [trace(rows, x, y, {marker: {...style, color: COLORS[0]}, showlegend: false})];
  const values = columns[color], found = kinds(values);
  if (isBool(values) || isText(values) || (isWhole(values) && found.length <= COLORS.length))
    return found.map((kind, k) => trace(rows.filter(i => values[i] === kind), x, y, {
      name: escaped(show(kind)), showlegend: found.length <= MANY,
      marker: {...style, color: COLORS[k % COLORS.length]}}));
  const bar = {title: {text: escaped(color), side: "right"}, thickness: 14, outlinewidth: 0};
  return [trace(rows, x, y, {
    marker: {...style, color: values, colorscale: "Viridis", colorbar: bar}, showlegend: false})];
}

function draw() {
  const [x, y, color] = ["x", "y", "color"].map(id => document.getElementById(id).value);
  const legend = {title: {text: color === NONE ? "" : escaped(color)}};
  Plotly.react("plot", traces(x, y, color),
    {xaxis: axis(x), yaxis: axis(y), legend, margin: {t: 24, r: 16, b: 48, l: 56}, hovermode: "closest"},
    {responsive: true, displaylogo: false, modeBarButtons: [BUTTONS]});
}

function element(tag, text, children = []) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function describe(i) {
  const parts = [element("p", columns.path[i])];
  const thumbnail = data.thumbnails[columns.image_id[i]];
  if (thumbnail !== undefined) {
    const image = element("img", null);
    image.src = thumbnail;
    parts.push(image);
  }
  const table = (title, lines) => element("table", null, [element("caption", title), ...lines.map(
    ([name, value]) => element("tr", null, [element("td", name), element("td", show(value))]))]);
  parts.push(table("row", ["image_id", "draw"].map(n => [n, columns[n][i]])));
  for (const [metric, conditions] of Object.entries(data.results))
    parts.push(table(metric, conditions.map(c => [c, columns[`$${metric}/$${c}`][i]])));
  const sampled = Object.keys(columns).filter(n => n.startsWith("sample/"));
  if (sampled.length) parts.push(table("sample", sampled.map(n => [n.slice(7), columns[n][i]])));
  document.getElementById("row").replaceChildren(...parts);
}

for (const id of ["x", "y", "color"]) {
  const select = document.getElementById(id);
  for (const name of [...(id === "color" ? [NONE] : []), ...Object.keys(columns)])
    select.append(element("option", name));
  select.value = data.start[id] ?? NONE;
  select.addEventListener("change", draw);
}
draw();
document.getElementById("plot").on("plotly_hover", event => describe(event.points[0].customdata));
</script>
</body>
</html>
""")
