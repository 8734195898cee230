// Draws an attribution graph from the data that the page carries: layers up, tokens along.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const SHOWN = 12;
  const state = { node: null, pinned: new Map(), share: 0.1, token: null, low: 0, high: data.layers, errors: true };

  const svg = (name, properties = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
  const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
  const token = (position) => `${position}: ${data.tokens[position]}`;

  const inputs = data.nodes.map(() => []), outputs = data.nodes.map(() => []);
  data.edges.forEach((edge) => { outputs[edge[0]].push(edge); inputs[edge[1]].push(edge); });

  // A column for each token, a row for embeddings, each layer, and targets; nodes of one place stand side by side.
  const SIZE = 13, GAP = 3, PER_LINE = 6, LEFT = 64, PAD = 10;
  const row = (node) => (node.kind === "embedding" ? 0 : node.kind === "target" ? data.layers + 1 : node.layer + 1);
  const isShown = (node) => node.kind === "embedding" || node.kind === "target" || (node.layer >= state.low && node.layer <= state.high && (state.errors || node.shape !== "error"));
  function layout() {
    const cells = new Map();
    data.nodes.forEach((node, i) => {
      if (!isShown(node) || (state.token !== null && node.token !== state.token && node.kind !== "target")) return;
      const key = `${row(node)},${node.token}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(i);
    });
    const widths = data.tokens.map(() => 34), heights = Array.from({ length: data.layers + 2 }, () => 0);
    for (const [key, members] of cells) {
      const [line, column] = key.split(",").map(Number);
      widths[column] = Math.max(widths[column], Math.min(members.length, PER_LINE) * (SIZE + GAP) + PAD);
      heights[line] = Math.max(heights[line], Math.ceil(members.length / PER_LINE) * (SIZE + GAP) + PAD);
    }
    const lefts = [], bottoms = [];
    const width = widths.reduce((sum, each) => (lefts.push(sum), sum + each), LEFT) + PAD;
    const height = heights.reduce((sum, each) => (bottoms.push(sum), sum + each), 26) + PAD;
    const spots = new Map();
    for (const [key, members] of cells) {
      const [line, column] = key.split(",").map(Number);
      members.forEach((node, i) => spots.set(node, [lefts[column] + PAD / 2 + (i % PER_LINE) * (SIZE + GAP) + SIZE / 2, height - bottoms[line] - PAD / 2 - Math.floor(i / PER_LINE) * (SIZE + GAP) - SIZE / 2]));
    }
    return { spots, lefts, bottoms, heights, widths, width, height };
  }

  const touches = ([source, end]) => state.node === null || source === state.node || end === state.node;
  const choose = (node) => { state.node = state.node === node ? null : node; draw(); };
  const keyed = (act) => (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } };

  function picture() {
    const at = layout();
    const lines = data.edges.filter((edge) => at.spots.has(edge[0]) && at.spots.has(edge[1]) && touches(edge) && (state.node !== null || edge[3] >= state.share)).map(([source, end, weight, share]) => {
      const [x1, y1] = at.spots.get(source), [x2, y2] = at.spots.get(end), bend = (y1 - y2) / 2;
      return svg("path", { class: `edge ${weight < 0 ? "k" : "q"}`, d: `M${x1},${y1} C${x1},${y1 - bend} ${x2},${y2 + bend} ${x2},${y2}`, "--weight": `${0.6 + 3 * Math.sqrt(share)}px`, "--shown": 0.2 + 0.7 * Math.sqrt(share) },
        svg("title", {}, `${data.nodes[source].name} → ${data.nodes[end].name}: ${compact(weight)}, ${percent(share)} of its input`));
    });
    const spots = [...at.spots].map(([i, [x, y]]) => {
      const node = data.nodes[i], half = SIZE / 2;
      const shape = node.shape === "error" ? svg("path", { d: `M0,${-half} L${half},${half} L${-half},${half} Z` }) : node.kind === "head" ? svg("path", { d: `M0,${-half} L${half},0 L0,${half} L${-half},0 Z` }) : node.shape === "unit" ? svg("circle", { r: half }) : svg("rect", { x: -half, y: -half, width: SIZE, height: SIZE, rx: 2 });
      return svg("g", { class: `spot ${node.kind} ${node.shape}${state.pinned.has(i) ? " pinned" : ""}`, role: "button", tabindex: "0", "aria-pressed": String(state.node === i), "aria-label": node.name, transform: `translate(${x},${y})`, onclick: () => choose(i), onkeydown: keyed(() => choose(i)) },
        shape, svg("title", {}, `${node.name}${node.label ? ` ${node.label}` : ""}`));
    });
    const names = Array.from({ length: data.layers + 2 }, (_, line) => (line === 0 ? "tokens" : line === data.layers + 1 ? "targets" : `layer ${line - 1}`));
    const rows = names.map((name, line) => at.heights[line] > 0 && svg("text", { class: "axis", x: 2, y: at.height - at.bottoms[line] - at.heights[line] / 2 + 4 }, name));
    const columns = data.tokens.map((text, i) => svg("text", { class: "axis", x: at.lefts[i] + at.widths[i] / 2, y: at.height - 8, "text-anchor": "middle" }, text.trim().slice(0, Math.max(3, Math.floor(at.widths[i] / 8))) || "·", svg("title", {}, token(i))));
    const drawing = svg("svg", { class: "features", viewBox: `0 0 ${at.width} ${at.height}`, width: at.width, height: at.height, role: "group", "aria-label": `Graph of ${at.spots.size} nodes` }, lines, rows, columns, spots);
    const counts = data.edges.length < data.edgeCount ? `the ${data.edges.length} strongest of ${data.edgeCount} edges; ` : "";
    return card("The graph", `${counts}circles${data.nodes.some((node) => node.kind === "head") ? " and diamonds" : ""}: ${data.units}, triangles: errors; choose one to see its edges`,
      el("p", { class: "soft key" }, el("span", { class: "mark q" }, "more of the source: more"), el("span", { class: "mark k" }, "more of the source: less")), filters(), el("div", { class: "scroll" }, drawing));
  }

  function filters() {
    const range = (name, value, most, set) => el("label", { class: "soft" }, `${name} `, el("input", { type: "range", min: 0, max: most, step: most === 1 ? 0.01 : 1, value, "aria-label": name, onchange: (event) => { set(Number(event.target.value)); draw(); } }), ` ${most === 1 ? percent(value) : value}`);
    const tokens = el("select", { "aria-label": "token", onchange: (event) => { state.token = event.target.value === "" ? null : Number(event.target.value); draw(); } },
      el("option", { value: "" }, "all tokens"), data.tokens.map((_, i) => el("option", { value: String(i), selected: state.token === i }, token(i))));
    return el("p", { class: "filters" }, range("edges of at least", state.share, 1, (value) => { state.share = value; }),
      range("from layer", state.low, data.layers - 1, (value) => { state.low = value; }), range("to layer", Math.min(state.high, data.layers - 1), data.layers - 1, (value) => { state.high = value; }), tokens,
      el("button", { type: "button", "aria-pressed": String(state.errors), onclick: () => { state.errors = !state.errors; draw(); } }, "errors"));
  }

  // Long names and tokens scroll within their table, and leave the page as wide as the screen.
  const table = (attributes, ...children) => el("div", { class: "scroll" }, el("table", { class: "changes", ...attributes }, ...children));
  const named = (i) => el("button", { type: "button", class: "node", onclick: () => choose(i) }, data.nodes[i].name);
  function edges(title, list, end) {
    const sorted = [...list].sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
    const rows = sorted.slice(0, SHOWN).map((edge) => el("tr", {}, el("td", {}, named(edge[end])), el("td", {}, data.nodes[edge[end]].label), el("td", { class: `number ${edge[2] < 0 ? "less" : "more"}` }, compact(edge[2])), el("td", { class: "number" }, percent(edge[3]))));
    return el("div", {}, el("h3", {}, `${title} (${list.length})`), table({}, el("thead", {}, el("tr", {}, ["node", "", "weight", "share"].map((name, i) => el("th", { scope: "col", class: i > 1 ? "number" : undefined }, name)))), el("tbody", {}, rows)));
  }

  function details() {
    if (state.node === null) return null;
    const node = data.nodes[state.node], about = [node.kind, node.kind === "target" ? null : token(node.token), node.shape === "unit" ? `activation ${compact(node.activation)}` : null].filter(Boolean).join(", ");
    const pin = () => { if (state.pinned.has(state.node)) state.pinned.delete(state.node); else state.pinned.set(state.node, ""); draw(); };
    return card(`${node.name}${node.label ? ` ${node.label}` : ""}`, about, el("p", {}, el("button", { type: "button", "aria-pressed": String(state.pinned.has(state.node)), onclick: pin }, "pin")),
      node.tokens && el("div", {}, ["reads", "raises", "lowers"].map((kind, i) => el("p", { class: "tokens", "aria-label": `${kind} tokens` }, el("span", { class: "soft" }, kind), node.tokens[i].map((text) => el("span", { class: "token" }, text))))),
      el("div", { class: "beside" }, edges("From", inputs[state.node], 0), edges("To", outputs[state.node], 1)));
  }

  // Pinned nodes, in groups that go by names; a group's influence on another is the sum of its members' edges.
  function pins() {
    if (!state.pinned.size) return null;
    const groups = new Map();
    for (const [i, name] of state.pinned) { const key = name || data.nodes[i].name; groups.set(key, [...(groups.get(key) ?? []), i]); }
    const rows = [...state.pinned].map(([i, name]) => el("tr", {}, el("td", {}, named(i)), el("td", {}, data.nodes[i].label), el("td", {}, el("input", { type: "text", value: name, placeholder: "group", "aria-label": `group of ${data.nodes[i].name}`, onchange: (event) => { state.pinned.set(i, event.target.value.trim()); draw(); } }))));
    const between = [];
    for (const [source, members] of groups) for (const [end, ends] of groups) {
      const sum = members.flatMap((i) => outputs[i]).filter((edge) => ends.includes(edge[1])).reduce((total, edge) => total + edge[2], 0);
      if (sum !== 0 && source !== end) between.push([source, end, sum]);
    }
    between.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
    const sums = between.map(([source, end, sum]) => el("tr", {}, el("td", {}, source), el("td", {}, end), el("td", { class: `number ${sum < 0 ? "less" : "more"}` }, compact(sum))));
    return card("Pinned", "give several the same group to add up their edges", el("div", { class: "beside" }, table({}, el("tbody", {}, rows)),
      between.length > 0 && table({ "aria-label": "Edges of groups" }, el("thead", {}, el("tr", {}, ["from", "to", "weight"].map((name, i) => el("th", { scope: "col", class: i === 2 ? "number" : undefined }, name)))), el("tbody", {}, sums))));
  }

  function draw() {
    const focused = document.activeElement?.getAttribute("aria-label"), scrolled = page.querySelector(".scroll")?.scrollLeft;
    const hero = el("header", {}, el("h1", {}, data.title), el("p", { class: "soft" }, `${data.model}, ${data.sources}`),
      el("p", { class: "tokens" }, data.tokens.map((text) => el("span", { class: "token" }, text))),
      el("p", { class: "soft" }, data.targets.map((one) => `${one.name} ${compact(one.weight)}`).join(", ")),
      el("p", { class: "soft" }, `${data.nodeCount} nodes and ${data.edgeCount} edges after pruning; replacement score ${compact(data.replacement)}, completeness ${compact(data.completeness)}${data.added ? "; the first token was put there" : ""}`));
    page.replaceChildren(...[hero, picture(), details(), pins(), el("footer", {}, data.footer)].filter(Boolean));
    const scroll = page.querySelector(".scroll");
    if (scrolled && scroll) scroll.scrollLeft = scrolled;
    if (focused) page.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
  }
  draw();
})();
